"""The server of the search page: an index and, where there is one, a captioning model in; a web application out.

Everything that the page needs comes from here, so it works without internet. Files are served by the number of a clip
of the index, never by a path. What a person sends is read within limits, by `MediaReader`.

Only pages of this server may use it: requests by another host name (DNS rebinding) and from other sites are refused.
"""

from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Annotated, TypeVar

import uvicorn
from fastapi import FastAPI, HTTPException, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from clip4vla.app.page import SearchPage
from clip4vla.app.searcher import Searcher
from clip4vla.app.uploads import receive, upload_folder
from clip4vla.inference.embedder import Embedder
from clip4vla.inference.index import Index
from clip4vla.inference.limits import ReaderLimits
from clip4vla.media.source import MediaError

UPLOAD_LIMITS = ReaderLimits(max_bytes=100_000_000)
MAX_CHARACTERS = 1000
"""Of a query."""
TOP, MOST = 12, 100
"""Clips that are shown, and the most that may be asked for."""
STATUS_OF = {"too_large": 413, "busy": 503}
"""HTTP statuses of reasons against an upload; those of others are 422."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' blob: data:; media-src 'self' blob:; style-src 'self'; script-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
OWN_SITE = ("same-origin", "none")
"""Values of Sec-Fetch-Site of a request by the page itself, or by no page."""

Sentence = Annotated[str, Query(max_length=MAX_CHARACTERS)]
Top = Annotated[int, Query(ge=1, le=MOST)]
Row = Annotated[int, Path(ge=0, lt=2**63)]
Answer = TypeVar("Answer")


def create_app(
    index: Index, captioner: Embedder | None = None, limits: ReaderLimits = UPLOAD_LIMITS, hosts: Sequence[str] = ()
) -> FastAPI:
    """The application of the search page.

    Args:
        index: is searched, and its files are shown.
        captioner: a model that captions examples; None: they get no caption.
        limits: of examples.
        hosts: names by which it may be addressed, beside those of this machine.
    """
    app = FastAPI(openapi_url=None)
    app.middleware("http")(_guard)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", *hosts])
    app.add_exception_handler(RequestValidationError, _explain)
    searcher = Searcher(index, captioner, limits)
    _add_page(app, searcher)
    _add_clips(app, searcher.index)
    return app


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve the application until it is interrupted."""
    uvicorn.run(app, host=host, port=port, log_level="warning")


def _add_page(app: FastAPI, searcher: Searcher) -> None:
    """Routes of the page, its style and script, and of the answers that it shows."""
    page = SearchPage(searcher)
    script = files("clip4vla.app").joinpath("static/app.js").read_bytes()

    @app.get("/")
    def show_page(q: Sentence = "", compare: str = "", top: Top = TOP) -> HTMLResponse:
        found = _or_422(lambda: searcher.by_sentence(q, compare, top)) if q.strip() else None
        return HTMLResponse(page.page(q, compare, found))

    @app.get("/results")
    def search(q: Sentence, compare: str = "", top: Top = TOP) -> HTMLResponse:
        return HTMLResponse(page.results(_or_422(lambda: searcher.by_sentence(q, compare, top))))

    @app.post("/results")
    async def search_by_example(request: Request, compare: str = "", top: Top = TOP) -> HTMLResponse:
        with upload_folder() as folder:
            try:
                await receive(request.stream(), folder, searcher.reader.limits.max_bytes)
                found = await run_in_threadpool(lambda: _or_422(lambda: searcher.by_example(folder, compare, top)))
            except MediaError as error:
                raise HTTPException(STATUS_OF.get(error.reason, 422), str(error)) from error
        return HTMLResponse(page.results(found))

    @app.get("/style.css")
    def style_sheet() -> Response:
        return Response(page.style(), media_type="text/css")

    @app.get("/app.js")
    def program() -> Response:
        return Response(script, media_type="text/javascript")


def _add_clips(app: FastAPI, index: Index) -> None:
    """Routes of a clip of the index by its number: its file, which can be asked for in parts, and its preview."""

    @app.get("/clips/{row}/media")
    def media(row: Row) -> FileResponse:
        return FileResponse(_or_404(lambda: index.file(row)))

    @app.get("/clips/{row}/pictures/{number}")
    def picture(row: Row, number: int) -> Response:
        pictures = _or_404(lambda: index.preview(row)).pictures
        if not 0 <= number < len(pictures):
            raise HTTPException(404, f"clip {row} has {len(pictures)} pictures")
        return Response(pictures[number], media_type="image/jpeg")

    @app.get("/clips/{row}/sound")
    def sound(row: Row) -> Response:
        found = _or_404(lambda: index.preview(row)).sound
        if found is None:
            raise HTTPException(404, f"clip {row} has no sound")
        return Response(found, media_type="audio/mpeg")


def _or_422(answer: Callable[[], Answer]) -> Answer:
    try:
        return answer()
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


def _or_404(answer: Callable[[], Answer]) -> Answer:
    try:
        return answer()
    except LookupError as error:
        raise HTTPException(404, str(error.args[0])) from error


async def _guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse requests from other sites, and tell the browser what the page may do."""
    if _is_foreign(request):
        return JSONResponse({"detail": "only its own page may use this server"}, 403)
    response = await answer(request)
    response.headers.update(HEADERS)
    return response


def _is_foreign(request: Request) -> bool:
    """Whether a page of another site sent it; a link that a person follows is not meant."""
    if request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate":
        return False
    origin = request.headers.get("origin")
    is_other_origin = origin is not None and origin != f"{request.url.scheme}://{request.url.netloc}"
    return is_other_origin or request.headers.get("sec-fetch-site", "none") not in OWN_SITE


async def _explain(_: Request, error: Exception) -> Response:
    """One sentence for a parameter that is missing or out of range."""
    assert isinstance(error, RequestValidationError)
    mistake = error.errors()[0]
    return JSONResponse({"detail": f"{mistake['loc'][-1]}: {mistake['msg']}"}, 422)
