"""Which files look like secrets, by their names: a package lies on every node, where more people read than wrote it."""

from __future__ import annotations

from fnmatch import fnmatchcase

# Names of files, wherever they are.
_NAMES = (
    ".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk",
    "id_rsa", "id_dsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk",
    ".netrc", "_netrc", ".pgpass", ".pypirc", ".git-credentials", ".htpasswd", ".dockercfg", ".boto", ".s3cfg",
    ".vault-token", "application_default_credentials.json",
)  # fmt: skip
# ... of which these hold no more than what to fill in.
_EXAMPLES = (".env.example", ".env.sample", ".env.template", ".env.dist", "example.env", "sample.env", "template.env")
# Names that mean something in their own directory alone.
_PLACES = (
    (".aws", "credentials"), (".aws", "config"), (".docker", "config.json"), (".kube", "config"), (".ssh", "*"),
    (".gnupg", "*"), (".azure", "accessTokens.json"), (".azure", "msal_token_cache.*"),
    ("gcloud", "credentials.db"), ("gcloud", "access_tokens.db"),
)  # fmt: skip


def looks_secret(name: str) -> bool:
    """
    Tell whether a file's name is one that secrets go by.

    :param name: with ``/`` between its parts; the last two count.
    """
    parts = name.rsplit("/", 2)
    # as written in any case: Windows and macOS keep what people type
    file = parts[-1].lower()
    if file in _EXAMPLES:
        return False
    if any(fnmatchcase(file, pattern) for pattern in _NAMES):
        return True
    return len(parts) > 1 and any(parts[-2] == folder and fnmatchcase(parts[-1], it) for folder, it in _PLACES)
