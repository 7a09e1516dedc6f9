"""One HTTP/2 connection of the scripted provider: h2 for the usual, frames for the rest."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from h2 import events
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, WindowUpdateFrame

from benchmarks.chaos import replies
from benchmarks.chaos.breaking import GARBAGE
from benchmarks.chaos.replies import Headers, Said
from benchmarks.chaos.site import STEP_S, Connection, Incoming, Open, perform

READ_BYTES = 1 << 16
HIGHEST = (1 << 31) - 1
#: Every third connection allows so few streams at once, from its first acknowledgement on.
FEW = 2
#: Bytes of a stream that may come, once that was shrunk: uploads still end in time.
WINDOW = 16_000
#: Seconds for which a connection that went away is read on.
LINGER_S = 2.0
#: A frame of a type that nobody knows, which is to be ignored (RFC 9113, section 5.5).
UNKNOWN = b"\x00\x00\x08\xfa\x00\x00\x00\x00\x00whatever"


class Http2(Connection):
    """Serves all streams of one connection until either side is done."""

    is_few = False

    async def run(self) -> None:
        config = H2Configuration(
            client_side=False,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = H2Connection(config=config)
        self.streams: dict[int, Stream] = {}
        self.opening = asyncio.Event()
        #: streams above it are not looked at
        self.last = HIGHEST
        self.h2.initiate_connection()
        self.unacknowledged, self.acknowledged = 1, asyncio.Event()
        try:
            await self.flush()
            while data := await self.reader.read(READ_BYTES):
                for event in self.h2.receive_data(data):
                    self._handle(event)
                await self.flush()
        except ProtocolError as error:
            self.site.book.broken_rules[f"{type(error).__name__}: {error}"] += 1
            with suppress(OSError):
                await self.flush()
        except OSError:
            return
        finally:
            self.forget()
            for stream in list(self.streams.values()):
                stream.stop()
            self.writer.close()

    def _handle(self, event: events.Event) -> None:
        match event:
            case events.RequestReceived():
                self._begin(event)
            case events.DataReceived():
                stream = self.streams.get(event.stream_id or 0)
                size = event.flow_controlled_length or 0
                with suppress(ProtocolError):  # of a stream, or a connection, that ends by now
                    if stream is None or not stream.starves:
                        self.h2.acknowledge_received_data(size, event.stream_id or 0)
                    elif size:
                        self.h2.increment_flow_control_window(size)
            case events.StreamEnded():
                if stream := self.streams.get(event.stream_id or 0):
                    stream.start()
            case events.StreamReset():
                if stream := self.streams.get(event.stream_id or 0):
                    stream.stop()
            case events.WindowUpdated() | events.RemoteSettingsChanged():
                self.opening.set()
                self.opening = asyncio.Event()
            case events.SettingsAcknowledged():
                self.unacknowledged -= 1
                self.acknowledged.set()
                self.acknowledged = asyncio.Event()
                self._open_windows()
                closed = self.h2.state_machine.state is ConnectionState.CLOSED
                if self.number % 3 == 0 and not self.is_few and not closed:
                    self.is_few = True
                    with suppress(ProtocolError):  # of a connection that ends by now
                        self._set({SettingCodes.MAX_CONCURRENT_STREAMS: FEW})
            case _:
                pass

    async def set(self, values: dict[SettingCodes | int, int]) -> None:
        """Send settings. One at a time: h2 takes any acknowledgement for that of the last."""
        while self.unacknowledged:
            await self.acknowledged.wait()
        self._set(values)
        await self.flush()

    def _set(self, values: dict[SettingCodes | int, int]) -> None:
        self.h2.update_settings(values)
        self.unacknowledged += 1

    def _open_windows(self) -> None:
        """Have uploads go on whose window a new setting has shut; h2 waits for more of them."""
        for number, stream in self.streams.items():
            with suppress(ProtocolError):
                room = self.h2.remote_flow_control_window(number)
                if room < WINDOW and not stream.starves:
                    self.h2.increment_flow_control_window(WINDOW - room, number)

    def _begin(self, event: events.RequestReceived) -> None:
        assert event.headers is not None and event.stream_id is not None
        if event.stream_id > self.last:
            return
        fields = {str(name): str(value) for name, value in event.headers}
        request, opened = self.begin(fields)
        stream = Stream(self, event.stream_id, request, opened)
        self.streams[event.stream_id] = stream
        if stream.act.startswith(("early", "starve", "rst-after-end")):
            stream.start()

    def over(self, stream: Stream) -> None:
        """A stream has ended; so does a connection that was said to go away, with its last."""
        self.streams.pop(stream.number, None)
        self.opened.pop(id(stream.opened), None)
        if self.last != HIGHEST and not self.streams:
            # At once it would be a reset, where something has come that was not read: that takes
            # with it what was sent. The proxy closes, too.
            asyncio.get_running_loop().call_later(LINGER_S, self.writer.close)

    def go_away(self, last: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Say so. Streams above *last* are not answered: they did not run."""
        self.frame(GoAwayFrame(0, last_stream_id=last, error_code=code))
        self.last = last
        for number, stream in list(self.streams.items()):
            if number > last and not stream.is_playing_now:
                self.site.book.note(stream.request.nonce, "did not run")
                stream.stop()

    def frame(self, *frames: Frame) -> None:
        self.writer.write(b"".join(frame.serialize() for frame in frames))

    async def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.writer.write(data)
        await self.writer.drain()


class Stream:
    """One request and its answer: a Wire."""

    def __init__(self, of: Http2, number: int, request: Incoming, opened: Open) -> None:
        self.of, self.number, self.request, self.opened = of, number, request, opened
        self.act = of.site.act(request)
        self.starves = self.act.startswith(("starve", "rst-after-end"))
        self.has_begun = False
        self._playing: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._playing is None:
            self._playing = asyncio.create_task(self._play())

    @property
    def is_playing_now(self) -> bool:
        """It is this stream that asks."""
        return self._playing is not None and self._playing is asyncio.current_task()

    def stop(self) -> None:
        """The proxy has left it, or it is not to run."""
        self.of.site.book.end(self.opened, left=True)
        self.of.over(self)
        if self._playing is not None:
            self._playing.cancel()

    async def _play(self) -> None:
        try:
            await perform(self.act, self, self.request, self.of.site.book)
        except (OSError, ProtocolError) as error:
            # The stream, or its connection, went away under us: that is the proxy leaving.
            self.of.site.book.note(self.request.nonce, f"could not: {type(error).__name__}")
        finally:
            self.of.site.book.end(self.opened)
            self.of.over(self)

    # -- a Wire

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        self.has_begun = True
        framing = () if length is None else (("content-length", f"{length}"),)
        self.of.h2.send_headers(self.number, [(":status", f"{status}"), *headers, *framing])
        await self.of.flush()

    async def data(self, data: bytes) -> None:
        h2 = self.of.h2
        while data:
            room = min(h2.local_flow_control_window(self.number), h2.max_outbound_frame_size)
            if room <= 0:
                await self.of.opening.wait()
                continue
            h2.send_data(self.number, data[:room])
            data = data[room:]
            await self.of.flush()

    async def end(self) -> None:
        self.of.h2.end_stream(self.number)
        await self.of.flush()

    async def say(self, said: Said) -> None:
        await self.head(said.status, said.headers, len(said.body) if said.length else None)
        for piece in said.pieces:
            await self.data(piece)
        await self.end()

    def break_off(self, how: str) -> None:
        verb, _, code = how.partition(":")
        if verb == "rst":
            self.of.h2.reset_stream(self.number, int(code or ErrorCodes.INTERNAL_ERROR))
            self.of.writer.write(self.of.h2.data_to_send())
            return
        # Its own end is no collateral.
        self.of.opened.pop(id(self.opened), None)
        self.of.break_connection(how)

    def under_tls(self, data: bytes) -> None:
        self.of.under_tls(data)

    async def special(self, verb: str, argument: str, request: Incoming) -> None:
        of, number = self.of, self.number
        good = replies.good(request.shape, request.nonce, request.vendor)
        match verb:
            case "garbage":
                of.writer.write(GARBAGE)
                self.break_off("fin")
                return
            case "length-over":
                await self.end()
                return
            case "interim":
                of.h2.send_headers(number, [(":status", argument), ("link", "</x>")])
                await of.flush()
                await asyncio.sleep(STEP_S)
            case "rst-after-end":
                await self.say(good)
                self.break_off(f"rst:{int(ErrorCodes.NO_ERROR)}")
                of.site.book.note(request.nonce, f"{request.attempt}: answered well")
                return
            case "goaway":
                if await self._go_away(argument):
                    return
            case "settings":
                await of.set(
                    {
                        SettingCodes.MAX_CONCURRENT_STREAMS: 1,
                        SettingCodes.HEADER_TABLE_SIZE: 0,
                        SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
                    }
                )
                await asyncio.sleep(STEP_S)
            case "starve":
                await asyncio.sleep(10 * STEP_S)
                of.h2.increment_flow_control_window(1 << 20, number)
                await of.flush()
                self.starves = False
            case "pings":
                for count in range(50):
                    of.h2.ping(count.to_bytes(8, "big"))
                await of.flush()
            case "trailers":
                await self.head(good.status, good.headers, None)
                await self.data(good.body)
                of.h2.send_headers(number, [("x-checksum", "none")], end_stream=True)
                await of.flush()
                of.site.book.note(request.nonce, f"{request.attempt}: answered well")
                return
            case "frame" if argument == "unknown":
                of.writer.write(UNKNOWN)
            case "frame" | "no-status":
                self._break_rules(argument)
                # The proxy is to end the stream, or all of them.
                await asyncio.Event().wait()
            case _:
                raise ValueError(f"HTTP/2 cannot {verb}")
        await self.say(good)
        of.site.book.note(request.nonce, f"{request.attempt}: answered well")

    def _break_rules(self, how: str) -> None:
        """Send a frame that cannot be."""
        if how == "broken":
            self.of.writer.write(_unchecked_data())
        elif how == "overflow":
            self.of.frame(WindowUpdateFrame(self.number, window_increment=HIGHEST))
        else:
            block = self.of.h2.encoder.encode([("content-type", "application/json")])
            self.of.frame(HeadersFrame(self.number, data=block, flags=["END_HEADERS"]))

    async def _go_away(self, how: str) -> bool:
        """Send a GOAWAY; return whether this request is among those that did not run."""
        of = self.of
        if how == "two-steps":
            of.frame(GoAwayFrame(0, last_stream_id=HIGHEST))
            await of.flush()
            await asyncio.sleep(STEP_S)
        if how in ("graceful", "two-steps"):
            of.go_away(max(of.streams))
            return False
        begun = [number for number, stream in of.streams.items() if stream.has_begun]
        last = max([self.number - 2, 0, *begun])
        if last >= self.number:
            of.go_away(max(of.streams))
            return False
        of.go_away(last, ErrorCodes.INTERNAL_ERROR if how == "error" else ErrorCodes.NO_ERROR)
        await of.flush()
        if how == "error":
            # In order, or what was said would be lost behind other answers.
            of.opened.pop(id(self.opened), None)
            of.forget()
            of.writer.close()
        return True


def _unchecked_data() -> bytes:
    """Return a DATA frame of the connection itself, which is an error of the connection."""
    whole = bytearray(DataFrame(1, data=b"nobody's").serialize())
    whole[5:9] = bytes(4)
    return bytes(whole)
