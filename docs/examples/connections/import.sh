airflow connections import token.json
