"""Certificates of upstreams: a bundle of one's own, refusal, and no check at all."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from optillm.protocol.errors import OptiError, UpstreamError
from optillm.settings import UpstreamSettings
from optillm.upstreams.http import ClientOptions, make_client
from tests.serving import serving
from tests.upstreams.servers import COMPLETION, answering, call, upstream

pytestmark = pytest.mark.anyio


async def answer(request: web.Request) -> web.StreamResponse:
    return web.json_response(COMPLETION)


def server_tls(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


async def test_a_bundle_of_ones_own(authority: trustme.CA, bundle: str) -> None:
    async with answering(answer, server_tls(authority)) as url, serving(url, ssl_cert_path=bundle) as proxy:
        assert (await proxy.ask()).text == "ok"
        # The client's own token goes through the same context.
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        assert (await proxy.post(body, {"Authorization": "Bearer sk-mine"})).status == 200


@pytest.mark.parametrize("retries", [0, 3])
async def test_a_certificate_that_nobody_signed(authority: trustme.CA, retries: int) -> None:
    async with answering(answer, server_tls(authority)) as url, serving(url, retries=retries) as proxy:
        refused = await proxy.ask()
        assert (refused.status, refused.error["type"]) == (502, "upstream_error")
        assert "certificate verify failed" in refused.error["message"]


async def test_a_refused_certificate_is_not_tried_again(authority: trustme.CA) -> None:
    # A second try would wait for longer than any test runs.
    async with (
        answering(answer, server_tls(authority)) as url,
        upstream(url, retries=3, backoff=1e6, total_timeout=1e9) as client,
    ):
        with pytest.raises(UpstreamError, match="certificate"):
            await client.complete(call())


async def test_the_wrong_authority_is_refused(authority: trustme.CA, bundle: str) -> None:
    async with (
        answering(answer, server_tls(trustme.CA())) as url,
        serving(url, ssl_cert_path=bundle) as proxy,
    ):
        assert "certificate verify failed" in (await proxy.ask()).error["message"]


async def test_the_wrong_host_is_refused(authority: trustme.CA, bundle: str) -> None:
    async with (
        answering(answer, server_tls(authority, "example.com")) as url,
        serving(url, ssl_cert_path=bundle) as proxy,
    ):
        assert "certificate" in (await proxy.ask()).error["message"]


async def test_no_check_at_all(authority: trustme.CA) -> None:
    async with answering(answer, server_tls(authority)) as url, serving(url, ssl_verify=False) as proxy:
        assert (await proxy.ask()).text == "ok"


async def test_azure_goes_through_the_same_context(authority: trustme.CA, bundle: str) -> None:
    async with answering(answer, server_tls(authority)) as url:
        azure = UpstreamSettings("azure", "azure", url.removesuffix("/v1"), "k", "2024-10-21")
        for trusted, status in ((bundle, 200), ("", 502)):
            async with serving(url, upstreams=(azure,), ssl_cert_path=trusted) as proxy:
                assert (await proxy.ask()).status == status


def test_a_bundle_without_certificates(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("nothing")
    with pytest.raises(OptiError, match=r"--ssl-cert-path: .*ca\.pem"):
        make_client(ClientOptions(bundle=str(path)))
