"""Single images over HTTP, with Ray Serve: the same predictor as the nightly job, for a patient who is in the room.

    POST /v1/predict    body: the image file; header X-API-Key. Answers what a row of scores carries.
    GET  /healthz       no key

200 a prediction, 401 no or a wrong key, 413 too large, 422 not an image that can be scored (`error_kind`, `error`).
"""

import asyncio
import hashlib
import hmac
import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import ray
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions

from melanoma import ray_session
from melanoma.errors import InputError, MelanomaError
from melanoma.imaging.limits import Limits
from melanoma.model.bundle import Bundle
from melanoma.model.bundle import load as load_bundle
from melanoma.model.predictor import Predictor, predict_bytes

KEY_VARIABLE = "MELANOMA_API_KEY"
_SHORTEST_KEY = 16
_APPLICATION = "melanoma"

api = FastAPI(title="melanoma", docs_url=None, redoc_url=None, openapi_url=None)


def key_digest(key: str) -> str:
    """What a replica knows of the API key: enough to check one, not to send one."""
    return hashlib.sha256(key.encode()).hexdigest()


# Above the class: `serve.ingress` copies its methods together with what this module holds by then, and no more.
def _error(status: int, kind: str, message: str) -> JSONResponse:
    return JSONResponse({"error_kind": kind, "error": message}, status_code=status)


@serve.deployment(
    ray_actor_options={"num_cpus": 1},
    max_ongoing_requests=8,
    max_queued_requests=64,
    autoscaling_config=AutoscalingConfig(min_replicas=1, max_replicas=8, target_ongoing_requests=4),
)
@serve.ingress(api)
class Endpoint:
    """One replica: it holds the model and answers."""

    def __init__(self, bundle: Bundle, api_key_digest: str) -> None:
        self._predictor = Predictor(bundle, threads=1)
        self._key = api_key_digest
        self._limits = Limits()
        # One picture at a time: a hostile one may take a gigabyte while it is decoded, eight of them the machine.
        self._worker = ThreadPoolExecutor(max_workers=1)

    @api.get("/healthz")
    def health(self) -> dict[str, str]:
        return {"status": "ok", "model_version": self._predictor.bundle.version}

    @api.post("/v1/predict")
    async def predict(self, request: Request) -> JSONResponse:
        sent = key_digest(request.headers.get("x-api-key", ""))
        if not hmac.compare_digest(sent, self._key):
            return _error(401, "unauthorized", "Send the API key in the header X-API-Key.")
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > self._limits.max_bytes:
                return _error(413, "too_large", f"The body has more than {self._limits.max_bytes} bytes.")
        # Off the event loop, which has to answer health checks while a picture is decoded.
        loop = asyncio.get_running_loop()
        row = await loop.run_in_executor(self._worker, predict_bytes, self._predictor, bytes(data), self._limits)
        if "error_kind" in row:
            return JSONResponse(row, status_code=413 if row["error_kind"] == "too_large" else 422)
        return JSONResponse(row)


def start(bundle: Bundle, api_key: str, host: str, port: int) -> None:
    """Start the endpoint on the connected Ray and return when it answers.

    Args:
        bundle: The model that it answers with.
        api_key: What clients send as X-API-Key.
        host: The address to listen on.
        port: The port to listen on.

    Raises:
        MelanomaError: It does not start.
    """
    try:
        serve.start(http_options=HTTPOptions(host=host, port=port), proxy_location="HeadOnly")
        serve.run(Endpoint.bind(bundle, key_digest(api_key)), name=_APPLICATION, route_prefix="/")  # type: ignore[attr-defined]
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise MelanomaError(f"The endpoint did not start on {host}:{port}: {str(error).splitlines()[-1]}") from error


def api_key_from_environment() -> str:
    """The key, taken out of the environment, which a local Ray hands on to all its processes.

    Raises InputError where there is no key, or one that could be guessed: there is no default key.
    """
    key = os.environ.pop(KEY_VARIABLE, "")
    if len(key) < _SHORTEST_KEY:
        raise InputError(
            f"Set {KEY_VARIABLE} to a secret of at least {_SHORTEST_KEY} characters that clients send as X-API-Key, "
            "such as the output of `openssl rand -hex 24`."
        )
    return key


def _refuse_taken_port(host: str, port: int) -> None:
    # Ray Serve shares its port with whoever else shares it: a second endpoint would start, and the two answer in turn.
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        raise InputError(
            f"Nothing can listen on {host}:{port}, which is taken, reserved or not of this machine: choose another "
            "--port or --host."
        ) from None


def serve_forever(bundle_uri: str | None, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until interrupted or terminated.

    Args:
        bundle_uri: The model to answer with; None: the reference bundle.
        host: The address to listen on.
        port: The port to listen on.
        say: Is given one line once the endpoint answers.

    Raises:
        InputError: The environment has no API key, the bundle cannot be used, or the port is taken.
        MelanomaError: The endpoint does not start.
    """
    key = api_key_from_environment()
    bundle = load_bundle(bundle_uri)
    if not os.environ.get("RAY_ADDRESS"):
        _refuse_taken_port(host, port)
    ray_session.connect()
    start(bundle, key, host, port)
    say(f"Model {bundle.version} answers at http://{host}:{port}/v1/predict. Stop with Ctrl-C.")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    # On a cluster that others use, Serve and their applications continue.
    serve.delete(_APPLICATION) if os.environ.get("RAY_ADDRESS") else serve.shutdown()
    ray.shutdown()
