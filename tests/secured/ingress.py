"""An nginx in front of a Ray head, with a route for each way to secure one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from certificates import CertificateAuthority
from nginx import Nginx, Server
from secret_values import BASIC_PASSWORD, HEADER_VALUE, PROXY_PASSWORD, TOKEN

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
# The address of an ingress in the documentation.
SHOWN_ADDRESS = "https://ray.example.com"
CLIENT_SECRET, ACCESS_TOKEN = "m4rked-client-9a", "m4rked-access-4c"
STRIP_AUTHORIZATION = 'proxy_set_header Authorization "";\n'


@dataclass
class Ingress:
    """
    The routes of an nginx.

    :param values: what the documentation shows, and what the tests use in its place.
    :param addresses: the address of each route, without base path:

        - ``basic``, ``headers``, ``mtls``: the server blocks of the documentation;
        - ``oauth``: wants an access token, which ``https://login.example.com`` gives;
        - ``private_ca``: wants nothing;
        - ``token_header``: removes ``Authorization`` from each request;
        - ``basic_forwarded``: wants basic authentication, and forwards ``Authorization`` to Ray;
        - ``strips_authorization``: likewise without TLS and base path;
        - ``http_proxy``: nginx serves as HTTP proxy.
    """

    values: dict[str, str]
    addresses: dict[str, str] = field(default_factory=dict)

    def fill_in(self, text: str, route: str = "") -> str:
        """Return a text of the documentation with the values of the tests, and the address of a route."""
        for shown, used in (self.values | {SHOWN_ADDRESS: self.addresses.get(route, "")}).items():
            text = text.replace(shown, used)
        return text


@contextmanager
def running_ingress(head_address: str, authority: CertificateAuthority, folder: Path) -> Iterator[Ingress]:
    """Run the nginx. Its users and the file of a token are in ``folder``."""
    (folder / "users").write_text(f"airflow:{{PLAIN}}{BASIC_PASSWORD}\n")
    (folder / "token").write_text(f"{TOKEN}\n")
    server, client = authority.issue("ingress", hosts=("127.0.0.1",)), authority.issue("airflow")
    ingress = Ingress({
        "http://ray-head:8265": head_address,
        "/etc/nginx/tls/ray.example.com.pem": str(server.cert),
        "/etc/nginx/tls/ray.example.com.key": str(server.key),
        "/etc/nginx/tls/clients-ca.pem": str(authority.cert),
        "/etc/nginx/ray-users": f"{folder}/users",
        "the-token-of-ray": TOKEN,
        "the-password-at-the-ingress": BASIC_PASSWORD,
        "the-password-at-the-proxy": PROXY_PASSWORD,
        "the-key-1234567890ab": HEADER_VALUE,
        "the-secret-of-the-client": CLIENT_SECRET,
        "/var/run/secrets/ray/token": str(folder / "token"),
        "/etc/ssl/ray/company-ca.pem": str(authority.cert),
        "/etc/ssl/ray/airflow.pem": str(client.cert),
        "/etc/ssl/ray/airflow.key": str(client.key),
        "/etc/ssl/ray/*": f"{client.cert.parent}/*",
    })  # fmt: skip
    tls = f"ssl_certificate {server.cert};\nssl_certificate_key {server.key};\n"
    basic = f'auth_basic "team a";\nauth_basic_user_file {folder}/users;\n'
    oauth = f'if ($http_authorization != "Bearer {ACCESS_TOKEN}") {{ return 401; }}\n{STRIP_AUTHORIZATION}'
    answer = json.dumps({"access_token": ACCESS_TOKEN, "expires_in": 3600})

    def to_ray(directives: str = "", base_path: str = "/team-a/") -> str:
        return f"location {base_path} {{\n{directives}proxy_pass {head_address}/;\n}}\n"

    servers = {
        **{route: Server.from_block(ingress.fill_in(block)) for route, block in shown_blocks().items()},
        "oauth": Server(tls + to_ray(oauth)),
        "private_ca": Server(tls + to_ray()),
        "token_header": Server(tls + to_ray(STRIP_AUTHORIZATION)),
        "basic_forwarded": Server(tls + to_ray(basic)),
        "strips_authorization": Server(to_ray(STRIP_AUTHORIZATION, "/"), tls=False),
        "http_proxy": Server(to_ray("", "/"), tls=False),
        "login": Server(f"{tls}location /oauth/token {{\ndefault_type application/json;\nreturn 200 '{answer}';\n}}\n"),
    }
    ingress.addresses = {route: each.address for route, each in servers.items()}
    ingress.values["https://login.example.com"] = servers["login"].address
    ingress.values["proxy.example.com:3128"] = servers["http_proxy"].address.removeprefix("http://")
    with Nginx([*servers.values()]):
        yield ingress


def shown_blocks() -> dict[str, str]:
    """Return the server blocks that the documentation shows, by route."""
    text = (EXAMPLES / "ingress" / "nginx.conf").read_text(encoding="utf-8")
    return dict(re.findall(r"^# START (\w+)\n(.*?)^# END \1$", text, re.MULTILINE | re.DOTALL))
