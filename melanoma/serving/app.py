"""Single images over HTTP, with Ray Serve: the same predictor as the nightly job, for a patient who is in the room.

    POST /v1/predict    body: the image file, or a form with it; header X-API-Key. Answers what a row of scores carries.
    GET  /healthz       no key; HEAD, too

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

from melanoma import config, ray_session
from melanoma.errors import InputError, MelanomaError
from melanoma.imaging.isolated import IsolatedDecoder
from melanoma.imaging.limits import Limits
from melanoma.model import device
from melanoma.model.bundle import Bundle
from melanoma.model.bundle import load as load_bundle
from melanoma.model.department import at_operating_point
from melanoma.model.form import NetworkForm
from melanoma.model.predictor import Predictor, predict_bytes
from melanoma.serving import form

KEY_VARIABLE = "MELANOMA_API_KEY"
_SHORTEST_KEY = 16
_APPLICATION = "melanoma"
# What `curl -d @FILE` says of a file, and leaves out of it; with --data-binary it says the same and leaves out nothing.
_OF_CURL = "application/x-www-form-urlencoded"
_LEFT_OUT_BY_CURL = (b"\r", b"\n", b"\0")

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
        if not bundle.is_compiled:
            device.use_no_gpu()
        self._predictor = Predictor(bundle, threads=1)
        self._key = api_key_digest
        self._limits = Limits()
        # In a process of its own: a file that kills or hangs it takes no replica with it.
        self._decoder = IsolatedDecoder(self._limits)
        # One picture at a time: a hostile one may take a gigabyte while it is decoded, eight of them the machine.
        self._worker = ThreadPoolExecutor(max_workers=1)

    @api.api_route("/healthz", methods=["GET", "HEAD"])
    def health(self) -> dict[str, str]:
        return {"status": "ok", "model_version": self._predictor.bundle.version}

    @api.post("/v1/predict")
    async def predict(self, request: Request) -> JSONResponse:
        sent = key_digest(request.headers.get("x-api-key", ""))
        if not hmac.compare_digest(sent, self._key):
            return _error(401, "unauthorized", "Send the API key in the header X-API-Key.")
        content_type = request.headers.get("content-type", "")
        most = self._limits.max_bytes + (form.OVERHEAD if form.is_form(content_type) else 0)
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > most:
                return _error(413, "too_large", f"The body has more than {most} bytes.")
        # Off the event loop, which has to answer health checks while a picture is decoded.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._answer, content_type, bytes(data))

    def _answer(self, content_type: str, body: bytes) -> JSONResponse:
        try:
            data = form.file_of(content_type, body) if form.is_form(content_type) else body
        except InputError as error:
            return _error(422, "form", str(error))
        row = predict_bytes(self._predictor, data, self._limits, self._decoder)
        if "error_kind" not in row:
            return JSONResponse(row)
        if content_type == _OF_CURL and data and not any(byte in data for byte in _LEFT_OUT_BY_CURL):
            row["error"] += " `curl -d` damages files: send it with `curl --data-binary @FILE`."
        return JSONResponse(row, status_code=413 if row["error_kind"] == "too_large" else 422)


class ServeArguments(config.Model):
    """The `args` of the application in a configuration file of Ray Serve, see `serve_forever`."""

    bundle: str | None = None
    operating_point: str | None = None
    network: NetworkForm = "auto"


def build_application(args: ServeArguments) -> serve.Application:
    """What `import_path` of a configuration file of Ray Serve names; the API key is in the environment, as for
    `serve_forever`. Raises InputError where there is none, or the model cannot be used."""
    key = api_key_from_environment()
    bundle = at_operating_point(load_bundle(args.bundle).in_form(args.network), args.operating_point)
    return Endpoint.bind(bundle, key_digest(key))  # type: ignore[attr-defined]


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
    """The key, taken out of the environment, which a local Ray hands on to all its processes; without blanks and line
    ends around it, which HTTP would leave out.

    Raises InputError where there is no key, one that could be guessed, or one that no client can send: there is no
    default key.
    """
    key = config.secret(KEY_VARIABLE).strip()
    os.environ.pop(KEY_VARIABLE, None)
    if len(key) < _SHORTEST_KEY:
        raise InputError(
            f"Set {KEY_VARIABLE} to a secret of at least {_SHORTEST_KEY} characters that clients send as X-API-Key, "
            "such as the output of `openssl rand -hex 24`."
        )
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            f"{KEY_VARIABLE} has characters that no client can send in a header: use letters and digits of ASCII, such "
            "as the output of `openssl rand -hex 24`."
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


def serve_forever(
    bundle_uri: str | None,
    operating_point: str | None,
    host: str,
    port: int,
    say: Callable[[str], None],
    network: NetworkForm = "auto",
) -> None:
    """Serve until interrupted or terminated.

    Args:
        bundle_uri: The model to answer with; None: the reference bundle.
        operating_point: A file of `melanoma threshold`; None: the thresholds of the model.
        host: The address to listen on.
        port: The port to listen on.
        say: Is given one line once the endpoint answers.
        network: The form of the model, see `Bundle.in_form`.

    Raises:
        InputError: The environment has no API key, the bundle or the operating point cannot be used, or the port is
            taken.
        MelanomaError: The endpoint does not start.
    """
    key = api_key_from_environment()
    bundle = at_operating_point(load_bundle(bundle_uri).in_form(network), operating_point)
    if not ray_session.cluster_address():
        _refuse_taken_port(host, port)
    ray_session.connect()
    start(bundle, key, host, port)
    say(f"Model {bundle.version} answers at http://{host}:{port}/v1/predict. Stop with Ctrl-C.")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    # On a cluster that others use, Serve and their applications continue.
    serve.delete(_APPLICATION) if ray_session.cluster_address() else serve.shutdown()
    ray_session.disconnect()
