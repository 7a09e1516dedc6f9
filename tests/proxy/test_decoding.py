"""Content decodings, a piece at a time."""

from __future__ import annotations

import gzip
import zlib

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.net.encoding import decode, encode

from account_pool.proxy import decoding
from account_pool.proxy.decoding import Decoder, End, as_whole, zstd
from tests.proxy.helpers import BR, OLD_BROTLI, needs_brotli


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


ENCODERS = {
    "": bytes,
    "identity": bytes,
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP ": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
}
READ = [BR if name == "br" else name for name in ENCODERS]


@pytest.mark.parametrize("encoding", READ)
@given(data=st.binary(max_size=3000), cuts=st.lists(st.integers(1, 400), max_size=20))
def test_any_split_gives_the_same(encoding, data, cuts):
    packed = ENCODERS[encoding](data)
    decoder = Decoder(encoding, max_bytes=1 << 20)
    out, at = b"", 0
    for size in [*cuts, len(packed)]:
        out += decoder.feed(packed[at : at + size])
        at += size
    assert out == data


def test_deflate_without_a_zlib_header():
    assert Decoder("deflate", max_bytes=1000).feed(raw_deflate(b"x" * 100)) == b"x" * 100


@given(cut=st.integers(0, 30))
def test_deflate_split_anywhere(cut):
    for pack in (zlib.compress, raw_deflate):
        packed = pack(b"hello hello hello")
        decoder = Decoder("deflate", max_bytes=1000)
        assert decoder.feed(packed[:cut]) + decoder.feed(packed[cut:]) == b"hello hello hello"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", BR, "zstd"])
def test_damaged(encoding):
    decoder = Decoder(encoding, max_bytes=1000)
    with pytest.raises(ValueError, match="damaged"):
        decoder.feed(b"\xff\xfe\xfd this is nothing of the kind" * 10)


@pytest.mark.parametrize("encoding", ["x-own", "gzip, compress", "gzip, gzip, gzip, gzip"])
def test_unknown(encoding):
    with pytest.raises(ValueError, match="cannot read"):
        Decoder(encoding, max_bytes=1000)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", BR, "gzip, zstd", "zstd, gzip"])
@pytest.mark.parametrize("max_bytes", [1000, 100 << 20])
def test_a_bomb_is_not_unpacked_whole(encoding, max_bytes):
    """Neither in all nor in one step, whatever the caller would take."""
    packed = bytes(160 << 20)
    for name in encoding.split(", "):
        packed = ENCODERS[name](packed)
    decoder = Decoder(encoding, max_bytes=max_bytes)
    steps = [len(decoder.feed(packed[at : at + 256])) for at in range(0, len(packed), 256)]
    assert max(steps) <= 4 << 20
    assert sum(steps) <= max_bytes + (4 << 20)
    assert decoder.is_full
    assert decoder.feed(b"any") == b""


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", BR, "gzip, zstd"])
def test_the_end_of_a_bomb_is_not_looked_for(encoding):
    packed = bytes(160 << 20)
    for name in encoding.split(", "):
        packed = ENCODERS[name](packed)
    unpacked = []
    end = End(encoding, keep_bytes=1000)
    feed = end._decoder.feed
    end._decoder.feed = lambda data: unpacked.append(out := feed(data)) or out
    end.feed(packed)
    assert sum(map(len, unpacked)) < 20 << 20
    assert end.kept == b""


@pytest.mark.skipif(not OLD_BROTLI, reason="this brotli can be bounded")
def test_brotli_without_a_bound_is_not_read_and_that_is_told_once(caplog):
    decoding._tell_of_brotli.cache_clear()
    for encoding in ("br", "gzip, br", " BR"):
        assert decoding.is_left_alone(encoding)
        with pytest.raises(ValueError, match="cannot read"):
            Decoder(encoding, max_bytes=1000)
        assert End(encoding, keep_bytes=10).kept == b""
        assert as_whole(b"x", encoding, max_bytes=100) == b"x"
    assert not decoding.is_left_alone("gzip")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert brotli.__version__ in caplog.text


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip, deflate", zlib.compress(gzip.compress(b"text", mtime=0))),
        ("zstd,gzip", gzip.compress(zstd.compress(b"text"), mtime=0)),
        ("identity, gzip , ", gzip.compress(b"text", mtime=0)),
        pytest.param(
            "gzip, br", brotli.compress(gzip.compress(b"text", mtime=0)), marks=needs_brotli
        ),
    ],
)
def test_several_are_undone_in_turn(encoding, packed):
    assert Decoder(encoding, max_bytes=1000).feed(packed) == b"text"
    decoder = Decoder(encoding, max_bytes=1000)
    assert b"".join(decoder.feed(packed[at : at + 1]) for at in range(len(packed))) == b"text"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_the_bound_is_exact(encoding):
    decoder = Decoder(encoding, max_bytes=1000)
    assert len(decoder.feed(ENCODERS[encoding](bytes(16 << 20)))) == 1000


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@given(texts=st.lists(st.binary(max_size=300), min_size=2, max_size=9), cut=st.integers(1, 99))
def test_frames_follow_each_other(encoding, texts, cut):
    """Servers that compress event by event send a frame for each."""
    packed = b"".join(ENCODERS[encoding](text) for text in texts)
    decoder = Decoder(encoding, max_bytes=1 << 20)
    out = [decoder.feed(packed[at : at + cut]) for at in range(0, len(packed), cut)]
    assert b"".join(out) == b"".join(texts)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_stream_may_have_a_frame_for_each_event(encoding):
    texts = [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % n for n in range(5000)]
    packed = [ENCODERS[encoding](text) for text in texts]
    decoder, end = Decoder(encoding, max_bytes=1 << 20), End(encoding, keep_bytes=100)
    assert b"".join(map(decoder.feed, packed)) == b"".join(texts)
    for data in packed:
        end.feed(data)
    assert b"".join(texts).endswith(end.kept)
    assert end.kept


@pytest.mark.parametrize(
    ("encoding", "frame"),
    [
        ("gzip", gzip.compress(b"", mtime=0)),  # its bytes name the test
        ("zstd", zstd.compress(b"")),
        ("zstd", zstd.compress(b"x")),
        ("zstd", b"\x50\x2a\x4d\x18" + bytes(4)),  # one to be skipped
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_frames_are_bounded_in_number(encoding, frame, streams, monkeypatch):
    """Each takes as long as a thousand bytes: three million of them kept the loop for 15 s."""
    made = []
    for name in ("_gzip_member", "_zstd_frame"):
        make = getattr(decoding, name)
        monkeypatch.setattr(decoding, name, lambda make=make: made.append(1) or make())
    packed = frame * 20_000
    with pytest.raises(ValueError, match="too many frames"):
        Decoder(encoding, max_bytes=1 << 20, streams=streams).feed(packed)
    assert len(made) <= 1001 + (len(packed) // 32 if streams else 0)
    made.clear()
    end = End(encoding, keep_bytes=100)
    end.feed(packed)
    assert not end.kept
    assert len(made) <= 1001 + len(packed) // 32


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_what_follows_the_end_is_ignored(encoding):
    decoder = Decoder(encoding, max_bytes=1000)
    packed = ENCODERS[encoding](b"text")
    assert decoder.feed(packed + bytes(20) + b"no frame at all") == b"text"
    assert decoder.feed(packed) == b""


def test_a_zstd_frame_cannot_ask_for_much_memory():
    """The window is what a decoder must set aside, whatever the text's own size."""
    options = {zstd.CompressionParameter.window_log: 24}
    packer = zstd.ZstdCompressor(options=options)
    packed = packer.compress(b"text") + packer.flush()
    with pytest.raises(ValueError, match="damaged"):
        Decoder("zstd", max_bytes=1000).feed(packed)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", BR, "zstd", " GZip "])
def test_the_beginning_of_a_body_becomes_a_whole_one(encoding):
    """mitmproxy shows nothing of one that lacks its end (zstd), or what it cannot read (br)."""
    text = b"".join(b'data: {"n": %d}\n\n' % n for n in range(5000))
    name = encoding.strip().lower().removeprefix("x-")
    half = encode(text, name)[: len(encode(text, name)) // 2]
    shown = decode(as_whole(half, encoding, max_bytes=1 << 20), name)
    # All that a reader of the stream had by then; zstd comes in large blocks.
    assert text.startswith(shown)
    assert shown or name == "zstd"
    whole = decode(as_whole(encode(text, name), encoding, max_bytes=1 << 20), name)
    assert whole == text


def test_a_beginning_is_bounded():
    bomb = encode(b"0" * (1 << 20), "gzip")
    assert len(decode(as_whole(bomb, "gzip", max_bytes=1000), "gzip")) < 300_000


@pytest.mark.parametrize("encoding", ["", "identity", "lzma", "gzip"])
def test_what_cannot_be_read_stays_as_it_is(encoding):
    assert as_whole(b"\xff\x00 damaged", encoding, max_bytes=100) == b"\xff\x00 damaged"


@pytest.mark.parametrize("encoding", READ)
@given(data=st.binary(max_size=3000), cut=st.integers(1, 400))
def test_the_end_is_kept_however_it_comes(encoding, data, cut):
    packed = ENCODERS[encoding](data)
    end = End(encoding, keep_bytes=100)
    for at in range(0, len(packed), cut):
        end.feed(packed[at : at + cut])
    assert data.endswith(end.kept)
    assert min(100, len(data)) <= len(end.kept) <= 200


def test_of_what_is_no_answer_no_end_is_kept(monkeypatch):
    for encoding in ("x-own", "gzip"):
        end = End(encoding, keep_bytes=100)
        end.feed(b"this is nothing of the kind" * 10)
        assert not end.kept
    monkeypatch.setattr(decoding, "MAX_PASSED_BYTES", 10_000)
    end = End("gzip", keep_bytes=100)
    end.feed(gzip.compress(bytes(100_000)))
    end.feed(gzip.compress(b"more"))
    assert not end.kept


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_the_end_of_what_is_not_packed_is_kept_in_one_piece(monkeypatch, encoding: str) -> None:
    monkeypatch.setattr(Decoder, "feed", None)  # each piece of it would be a call
    end = End(encoding, keep_bytes=100)
    whole = b""
    for number in range(50):
        data = b"%d " % number * (number % 7 * 40)
        end.feed(data)
        whole += data
        assert whole.endswith(end.kept)
        assert min(len(whole), 100) <= len(end.kept) <= 200
