"""Every form of an image gives the pixels that Pillow gives, or a clear error."""

import base64
import http.server
import io
import os
import pathlib
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import blip2_jax
from blip2_jax.inference import image_urls
from blip2_jax.inference.inputs import as_images
from blip2_jax.inference.user_images import as_pixels
from tests.support.generated_data import encoded, picture

PNG = encoded(picture(1), "PNG")
PIXELS = np.asarray(picture(1))


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with an image, an error, a cut file or very slowly."""

    def do_GET(self):
        path = self.path.removeprefix("/")
        if path == "missing.png":
            self.send_error(404)
            return
        if path == "moved.png":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        length = len(PNG) + (10 if path == "cut.png" else 0)
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if path == "page.html":
            self.wfile.write(b"<html>".ljust(len(PNG)))
            return
        for number in range(0, len(PNG), 16):
            try:
                self.wfile.write(PNG[number : number + 16])
            except OSError:  # the client gave up
                return
            time.sleep(0.05 if path == "slow.png" else 0)

    def log_message(self, *_):
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("localhost", 0), Server) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://localhost:{httpd.server_port}"
        httpd.shutdown()


def test_urls(server):
    for path in ("a.png", "moved.png"):
        np.testing.assert_array_equal(as_pixels(f"{server}/{path}"), PIXELS)
    data = base64.b64encode(PNG).decode()
    url = f"data:image/png;base64,{data}"
    np.testing.assert_array_equal(as_pixels(url), PIXELS)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.png", "the server answered 404 Not Found"),
        ("page.html", "page.html.*not an image|not an image.*page.html"),
        ("cut.png", r"only \d+ of \d+ bytes arrived"),
    ],
)
def test_urls_that_fail_are_named(server, path, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        as_pixels(f"{server}/{path}")
    assert f"{server}/{path}" in str(caught.value)


def test_downloads_have_limits_of_time_and_size(server, monkeypatch):
    monkeypatch.setattr(image_urls, "TIMEOUT", 0.3)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"slow.png: no complete answer within 0.3 s"):
        as_pixels(f"{server}/slow.png")
    assert time.monotonic() - start < 2
    monkeypatch.setattr(image_urls, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"a.png: it is larger than"):
        as_pixels(f"{server}/a.png")


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:1/a.png",
        "https://name.invalid/a.png",
        "http://",
        "http://[broken/a.png",
        "http://localhost:99999999/a.png",
        "data:image/png;base64,?",
        "data:nothing",
    ],
)
def test_addresses_without_an_answer_are_named(url):
    with pytest.raises(ValueError) as caught:
        as_pixels(url)
    assert url in str(caught.value)


def test_files_in_all_forms(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    with path.open("rb") as file:
        forms = [
            path,
            str(path),
            PNG,
            bytearray(PNG),
            memoryview(PNG),
            io.BytesIO(PNG),
            file,
            Image.open(path),
        ]
        for form in forms:
            np.testing.assert_array_equal(as_pixels(form), PIXELS)
        with pytest.raises(ValueError, match=r"empty image file.*a\.png"):
            as_pixels(file)  # at its end
    text_file = path.open(encoding="latin-1")
    with text_file, pytest.raises(TypeError, match=r"a\.png is open in text mode"):
        as_pixels(text_file)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", pathlib.Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match=r"is a (folder|device or pipe)") as caught:
            as_pixels(other)
        assert str(other) in str(caught.value)


MODES = [
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "LA",
    "PA",
    "RGBX",
]


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_pil_images(mode):
    through = {"LAB": "RGB", "PA": "P"}.get(mode, mode)
    image = picture(2).convert(through)
    image = Image.new("LAB", (9, 7), 90) if mode == "LAB" else image.convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(as_pixels(image), expected)


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_modes_that_pillow_converts_in_two_steps(mode):
    plain = {"RGBa": "RGBA", "La": "LA"}[mode]
    image = picture(2).convert(plain).convert(mode)
    expected = np.asarray(image.convert(plain).convert("RGB"))
    np.testing.assert_array_equal(as_pixels(image), expected)


def test_wide_grey_values_have_one_rule():
    ramp = np.arange(12).reshape(3, 4)
    for values, expected in [
        ((ramp * 20).astype(np.int32), ramp * 20),
        ((ramp * 5900).astype(np.int32), ramp * 5900 >> 8),
        ((ramp * 5900).astype(np.uint16), ramp * 5900 >> 8),
        ((ramp / 11).astype(np.float32), np.rint(ramp / 11 * 255)),
        ((ramp * 20).astype(np.float32), ramp * 20),
    ]:
        image = Image.fromarray(values)
        stored = encoded(image, "TIFF")
        for form in (image, stored):
            np.testing.assert_array_equal(as_pixels(form)[..., 1], expected)
    for values in (
        (ramp * 2**20).astype(np.int32),
        (ramp - 3).astype(np.int32),
        (ramp * 100).astype(np.float32),
        np.full((3, 4), np.nan, np.float32),
        np.full((3, 4), np.inf, np.float32),
    ):
        for form in (Image.fromarray(values), encoded(Image.fromarray(values), "TIFF")):
            with pytest.raises(ValueError, match=r"grey values from .*: expected 0 to"):
                as_pixels(form)


def test_arrays_of_all_libraries():
    grey, rgba = PIXELS[..., 0], np.dstack([PIXELS, PIXELS[..., 0]])
    assert as_pixels(PIXELS) is PIXELS
    for form, expected in [
        (jnp.asarray(PIXELS), PIXELS),
        (rgba, PIXELS),
        (grey, np.asarray(Image.fromarray(grey).convert("RGB"))),
        (grey[..., None], np.dstack([grey] * 3)),
    ]:
        np.testing.assert_array_equal(as_pixels(form), expected)


def test_torch_tensors_may_have_channels_first():
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(PIXELS.copy())
    np.testing.assert_array_equal(as_pixels(tensor), PIXELS)
    np.testing.assert_array_equal(as_pixels(tensor.permute(2, 0, 1)), PIXELS)
    batch = torch.stack([tensor.permute(2, 0, 1)] * 2)
    np.testing.assert_array_equal(as_images(batch, 16), as_images([PIXELS] * 2, 16))
    with pytest.raises(ValueError, match=r"not \[3, 30, 40\] of float32: convert"):
        as_pixels(tensor.permute(2, 0, 1) / 255)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 0, 3), np.uint8), "an image of 0 x 0 has no pixels"),
        (np.zeros((0, 5), np.uint8), "an image of 0 x 5 has no pixels"),
        (np.zeros((5, 0, 3), np.uint8), "an image of 5 x 0 has no pixels"),
        (Image.new("RGB", (0, 4)), "an image of 4 x 0 has no pixels"),
        (Image.new("F", (0, 0)), "an image of 0 x 0 has no pixels"),
        (np.zeros((4, 4, 3)), r"\[4, 4, 3\] of float64: convert floats first"),
        (np.zeros((3, 8, 9), np.uint8), r"\[3, 8, 9\] of uint8: move the channels"),
        (np.zeros((4, 4, 2), np.uint8), r"not \[4, 4, 2\] of uint8"),
        (np.zeros((4, 4, 3), bool), r"not \[4, 4, 3\] of bool"),
        (np.zeros(4, np.uint8), r"not \[4\] of uint8"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"not \[1, 4, 4, 3\] of uint8"),
        (np.array(None), r"not \[\] of object"),
        (Image.new("1", (20_000, 6_000)), "huge image.*20000x6000"),
        (b"", "empty image file"),
        (b"no image", "not an image.*8 bytes|8 bytes.*not an image"),
        (PNG[:200], "truncated image"),
        ("shapes:red", "no example picture 'shapes:red'"),
    ],
)
def test_images_that_cannot_be_used(image, message):
    with pytest.raises(ValueError, match=message):
        as_pixels(image)


def test_truncated_files_that_pillow_has_opened():
    image = Image.open(io.BytesIO(encoded(picture(5, 200, 150), "PNG")[:2000]))
    with pytest.raises(ValueError, match="truncated image"):
        as_pixels(image)


@pytest.mark.parametrize("image", [3, None, {"a": 1}, {1}, object()])
def test_other_types(image):
    with pytest.raises(TypeError, match=r"an image is a path, a URL.*, not "):
        as_pixels(image)


def test_example_pictures():
    first = blip2_jax.example_image()
    np.testing.assert_array_equal(as_pixels("shapes:0"), np.asarray(first))
    assert blip2_jax.example_image(1, size=128).size == (128, 128)
    assert (as_pixels("shapes:1") != np.asarray(first)).any()
