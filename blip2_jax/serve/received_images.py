"""Images of requests: data URLs, and http(s) URLs if the server allows them."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from blip2_jax.inference.image_urls import is_url, read_url, shorten_url
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.user_images import as_pixels
from blip2_jax.serve.api_errors import ApiError
from blip2_jax.serve.public_urls import public_opener
from blip2_jax.serve.requests import Pixels, image_pixels
from blip2_jax.serve.server_config import ServerConfig
from blip2_jax.serve.uploads import FORMATS

_OPENER = public_opener()


def read_image(model: Blip2, url: str, config: ServerConfig, param: str) -> Pixels:
    """Read an image of a request; called in a thread.

    Args:
      model: the model that will read it.
      url: what the client gave. Names of files are never opened.
      config: limits.
      param: name of the field, for errors.

    Returns:
      Pixels of the model's size.

    Raises:
      ApiError: there is no such image, or it is refused.
    """
    try:
        data = _read_bytes(url, config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are checked here
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                pixels = image.width * image.height
                if pixels > config.max_pixels:
                    raise ValueError(
                        f"an image of {image.width} x {image.height} pixels; the limit "
                        f"is {config.max_pixels / 1e6:g} million"
                    )
                return image_pixels(model, as_pixels(image))
    except UnidentifiedImageError:
        message = f"this is not an image file of the formats {', '.join(FORMATS)}"
    except Image.DecompressionBombError as error:
        message = str(error)
    except Exception as error:  # decoders of broken files raise almost anything
        message = str(error) or "the image cannot be read"
    raise ApiError(400, f"{param}: {message}", param=param, code="invalid_image")


def _read_bytes(url: str, config: ServerConfig) -> bytes:
    """Return the bytes of an image file.

    Raises:
      ValueError: the URL is of another kind, is not allowed or cannot be read.
    """
    if not is_url(url):
        raise ValueError(
            f"{shorten_url(url)!r} is no URL: give the image as "
            "data:image/jpeg;base64,..."
        )
    if url[:5].lower() != "data:" and not config.allow_urls:
        raise ValueError(
            "this server downloads no images: give the image as "
            "data:image/jpeg;base64,..., or start it with --allow_urls"
        )
    return read_url(url, opener=_OPENER, max_bytes=config.max_body)
