airflow pools set ray_cluster 2 "Jobs on the Ray cluster" --include-deferred
