"""Wrong requests to the HTTP server: types, ranges, images, names, URLs, bodies."""

import base64
import io
import json
import struct
import zlib

from PIL import Image

from tests.support.running_server import image_part, user_message

CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"
MATCH, RANK = "/v1/match", "/v1/rank"
NOT_TEXT = (5, True, [], {"a": 1}, 1.5)
NOT_NUMBER = ("1", [], {}, True)
WRONG_CHAT = {
    "model": (
        *NOT_TEXT,
        "nothing",
        "../../etc/passwd",
        "/etc/passwd",
        "a\x00b",
        "\u202e",
    ),
    "messages": (None, [], {}, "hello", 5, [5], [None], [{}], [[]]),
    "temperature": (*NOT_NUMBER, -0.1, 2.5, 1e400, "nan"),
    "top_p": (*NOT_NUMBER, 0, -1, 1.5),
    "max_tokens": (*NOT_NUMBER, 0, -5, 1.5, 10**6, 10**30),
    "max_completion_tokens": (*NOT_NUMBER, 0, 10**6),
    "n": (*NOT_NUMBER, 0, -1, 100),
    "stop": (5, [""], "", ["a"] * 5, [5], {}),
    "seed": (*NOT_NUMBER, 2**63, -(2**63) - 1, 1.5),
    "stream": ("yes", 1, []),
    "stream_options": ("x", [], {"other": True}),
    "frequency_penalty": (0.5, "x"),
    "presence_penalty": (-0.5, []),
    "logprobs": (True, "x"),
    "top_logprobs": (3,),
    "logit_bias": ({"50256": -100}, []),
    "response_format": ({"type": "json_object"}, "json"),
    "tools": ([{"type": "function"}], "x"),
    "tool_choice": ("required", {"type": "function"}),
    "unknown_option": (1, None),
    "template": ("{0.__class__}", 5, ""),
    "num_beams": (*NOT_NUMBER, 0, 1000),
    "top_k": (*NOT_NUMBER, -1, 10),  # 10: without a temperature
    "min_new_tokens": (*NOT_NUMBER, -1, 10**6),
    "length_penalty": (*NOT_NUMBER, 1e400, 1e9),
    "repetition_penalty": (*NOT_NUMBER, 0, -1),
}
WRONG_EMBED = {
    "input": (None, 5, [], "", [""], [5], [[1, 2]], {}, [{}], [{"type": "x"}]),
    "encoding_format": ("float16", 5),
    "dimensions": (8, "8"),
    "model": (*NOT_TEXT, "nothing"),
}
WRONG_MATCH = {
    "image": (None, 5, "", [], {}),
    "texts": (None, "a", [], [""], [5], ["a"] * 1000, ["a " * 3000], ["a " * 500]),
    "model": ("nothing", "shapes"),  # the latter is of stage 2
}
WRONG_RANK = {
    "image": (None, 5, ""),
    "candidates": (None, "a", [], [""], ["a"] * 1000, ["a " * 3000]),
    "question": (5, "", "a " * 3000),
    "length_penalty": ("1", 1e400, 100),
    "prompt": (5, "a"),  # a question is given, too
}


def wrong_urls(good: str) -> list[str]:
    """Return what is no image that this server may read."""
    data = base64.b64decode(good.partition(",")[2])
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64)).save(jpeg, "JPEG")
    files = [
        b"",
        b"\x00" * 100,
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        data[:8],
        data[: len(data) // 2],
        data[:50] + b"\xff" * 50 + data[100:],
        jpeg.getvalue()[:200],
        _png_header(60_000, 60_000),
        _png_header(2**31 - 1, 2**31 - 1),
        _png_header(0, 5),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"GIF89a" + b"\xff" * 20,
        b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    ]
    return [
        *("data:image/png;base64," + base64.b64encode(f).decode() for f in files),
        "data:image/png;base64,!!!!",
        "data:image/png;base64",
        "data:",
        "/etc/passwd",
        "../../../../etc/passwd",
        "file:///etc/passwd",
        "ftp://example.com/a.png",
        "gopher://example.com/",
        "shapes:0",
        "s3://bucket/a.png",
        "a.jpg",
        "\x00",
        "http://127.0.0.1/a.png",
        "http://localhost:22/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/a.png",
        "https://10.0.0.1/a.png",
        "http://",
        "x" * 10_000,
    ]


def _png_header(width: int, height: int) -> bytes:
    """Return a PNG that says to be large and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\x00" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def wrong_messages(url: str) -> list:
    """Return conversations that the server does not take."""
    user, image = {"role": "user", "content": "what?"}, user_message(url, "what?")
    answer = {"role": "assistant", "content": "a circle"}
    return [
        [user],  # no image
        [image, answer],
        [answer, image],
        [image, image],
        [image, answer, answer, user],
        [{"role": "system", "content": "be kind"}, image],
        [{"role": "tool", "content": "x"}, image],
        [{"role": "king", "content": "x"}],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "user", "content": [{"type": "video"}]}],
        [user_message(url), {"role": "assistant", "content": [image_part(url)]}, user],
        [user_message(*[url] * 20)],
        [user_message(url, "x" * 100_000)],
        [image, answer] * 150 + [user],
        [{**image, "surprise": 1}],
        [user, answer, user_message(url)],  # a caption has no earlier turns
    ]


def raw_bodies(good: dict) -> list[bytes]:
    """Return bodies that are no JSON, or not that of a request."""
    text = json.dumps(good)
    return [
        b"",
        b"{",
        b"null",
        b"5",
        b"[]",
        b'"text"',
        b"\xff\xfe\x00",
        b"[" * 50_000,
        b'{"a":' * 5_000,
        text[:-10].encode(),
        b"\x00" + text.encode(),
        b'{"messages": ' + b"9" * 10_000 + b"}",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"\\ud800": 1}',
        b'{"temperature": NaN}',
        b"--boundary\r\nContent-Disposition: form-data\r\n\r\nx",
    ]


def bad_requests(url: str) -> list[tuple[str, bytes]]:
    """Return (path, body) of each wrong request, given the URL of a good image."""
    chat = {"model": "shapes", "messages": [user_message(url, "what?")]}
    good = {
        CHAT: chat,
        EMBED: {"model": "shapes_stage1", "input": "a circle"},
        MATCH: {"model": "shapes_stage1", "image": url, "texts": ["a circle"]},
        RANK: {"image": url, "candidates": ["red", "blue"], "question": "what color?"},
    }
    wrong = {CHAT: WRONG_CHAT, EMBED: WRONG_EMBED, MATCH: WRONG_MATCH, RANK: WRONG_RANK}
    bodies = [
        (path, good[path] | {name: value})
        for path, fields in wrong.items()
        for name, values in fields.items()
        for value in values
    ]
    for messages in wrong_messages(url):
        bodies.append((CHAT, chat | {"messages": messages}))
    long = [user_message(url, "a " * 1900)]  # more tokens than the model's positions
    bodies.append((CHAT, chat | {"template": "none", "messages": long}))
    for index, bad in enumerate(wrong_urls(url)):
        by_field = ((MATCH, "image"), (RANK, "image"))
        path, field = by_field[index % 2]
        bodies.append((path, good[path] | {field: bad}))
        message = {"role": "user", "content": [image_part(bad)]}
        bodies.append((CHAT, chat | {"messages": [message]}))
        bodies.append((EMBED, good[EMBED] | {"input": [image_part(bad)]}))
    requests = [(path, json.dumps(body).encode()) for path, body in bodies]
    return requests + [(path, body) for path in good for body in raw_bodies(chat)]
