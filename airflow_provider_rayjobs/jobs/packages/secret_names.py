"""Which files look like secrets, by their names: a package lies on every node, where more people read than wrote it."""

from __future__ import annotations

import re
from fnmatch import translate

# Names of files, wherever they are.
_NAMES = (
    ".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk",
    "id_rsa", "id_dsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk",
    ".netrc", "_netrc", ".pgpass", ".pypirc", ".git-credentials", ".htpasswd", ".dockercfg", ".boto", ".s3cfg",
    ".vault-token", "application_default_credentials.json", ".envrc", ".npmrc", "kaggle.json", ".databrickscfg",
    ".my.cnf", "*.tfvars",
)  # fmt: skip
# ... of which these hold no more than what to fill in.
_EXAMPLES = (".env.example", ".env.sample", ".env.template", ".env.dist", "example.env", "sample.env", "template.env")
# Names that mean something in their own directory alone.
_PLACES = (
    (".aws", "credentials"), (".aws", "config"), (".docker", "config.json"), (".kube", "config"), (".ssh", "*"),
    (".gnupg", "*"), (".azure", "accessTokens.json"), (".azure", "msal_token_cache.*"),
    ("gcloud", "credentials.db"), ("gcloud", "access_tokens.db"), (".huggingface", "token"), ("huggingface", "token"),
    (".streamlit", "secrets.toml"),
)  # fmt: skip


# One look at each name: a tree may have many. In any case of letters: Windows and macOS keep what people type.
_FILE = re.compile("|".join(map(translate, _NAMES)), re.IGNORECASE)
_PLACE = re.compile(
    "|".join(f"(?:.*/)?{re.escape(folder)}/(?:{translate(file)})" for folder, file in _PLACES),
    re.IGNORECASE | re.DOTALL,
)


def is_secret_file(name: str) -> bool:
    """
    Tell whether a file's name is one that secrets go by.

    :param name: with ``/`` between its parts, of which the last ones count.
    """
    file = name[name.rfind("/") + 1 :]
    if _FILE.match(file):
        return file.lower() not in _EXAMPLES
    return _PLACE.match(name) is not None
