"""
The names of files that usually hold secrets. Packages leave them out, as every node can read a package.

A name is listed if a widespread program keeps passwords, tokens or private keys in a file of that name.
``docs/guides/local-code.md`` shows the same list. Most ``*.pem`` files are public certificates, so they are not on it.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

# A file name, which matches in any directory, or "directory/file".
SECRET_NAMES = frozenset([
    ".env", ".env.local", ".env.production", ".envrc",
    "id_rsa", "id_dsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk",
    ".netrc", ".htpasswd", ".git-credentials", ".git/config", ".npmrc", ".pypirc",
    ".pgpass", ".my.cnf",
    "credentials.json", "application_default_credentials.json", ".aws/credentials", ".azure/accessTokens.json",
    ".azure/msal_token_cache.json", "gcloud/access_tokens.db", "gcloud/credentials.db", ".boto", ".s3cfg",
    "kubeconfig", ".kube/config", ".docker/config.json",
    "terraform.tfstate", "terraform.tfstate.backup", "terraform.tfvars", ".vault-token",
    ".databrickscfg", "huggingface/token", "kaggle.json", ".streamlit/secrets.toml",
])  # fmt: skip
# The only pattern: users choose the names of Google Cloud's key files.
PATTERN = "service-account*.json"


def is_secret_file(name: str) -> bool:
    """Tell whether a path has the name of a secret file, by its last two parts."""
    parts = name.split("/")[-2:]
    return not SECRET_NAMES.isdisjoint((parts[-1], "/".join(parts))) or fnmatchcase(parts[-1], PATTERN)
