"""
The names of files that are left out of packages, as they usually hold secrets. A package lies on every node.

An exact list: a name is on it if a widespread program keeps passwords, tokens or private keys in a file of that name.
``docs/USAGE.md`` shows the same list. Certificates (``*.pem``) are not on it, as most of them are public.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

# A file's name in any directory, or its directory's name and its own.
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
# The one pattern: users choose the names of Google Cloud's key files, and most begin so.
PATTERN = "service-account*.json"


def looks_secret(name: str) -> bool:
    """
    Tell whether a file's name is on the list.

    :param name: with ``/`` between its parts; the last two count.
    """
    parts = name.split("/")[-2:]
    return not SECRET_NAMES.isdisjoint((parts[-1], "/".join(parts))) or fnmatchcase(parts[-1], PATTERN)
