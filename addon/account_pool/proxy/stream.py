"""One client request as it comes in: whose business it is.

Once its head says so, the stream is of one class for all that follows: requests to other
hosts stay here and go the way of mitmproxy's own class; those on a pool host that are not
its business pass as the client sent them (`Passthrough`); those to the proxy itself are
answered (`admin_exchange.py`); the rest is served (`pooled_exchange.py`).
"""

from __future__ import annotations

import logging
from typing import Any, cast

from mitmproxy import http
from mitmproxy.net.http import url
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator, NextLayer
from mitmproxy.proxy.layers.http import (
    DropStream,
    HTTPMode,
    HttpStream,
    RequestHeaders,
    ResponseProtocolError,
    SendHttp,
)

from account_pool.admin.http import ADMIN_HOST
from account_pool.core.reactions import STOPPING, STOPPING_PAUSE_S
from account_pool.providers.base import LocalResponse, Route
from account_pool.proxy import (
    admin_exchange,
    credential_swap,
    error_response,
    pooled_request,
    redaction,
    tunnels,
)
from account_pool.proxy.admin_exchange import AdminExchange
from account_pool.proxy.events import SERVER_ERROR
from account_pool.proxy.http_stream import AttemptStream, translated
from account_pool.proxy.pooled_exchange import PooledExchange
from account_pool.proxy.pooled_request import Destination, PooledRequest

logger = logging.getLogger(__name__)

_PROXY_AUTHORIZATION = "proxy-authorization"


class PoolHttpStream(AttemptStream):
    """One client request until its head has come, and all of one that is not the pool's."""

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if type(event) is RequestHeaders:
            return self._chosen(event)
        return super()._handle_event(event)

    def _chosen(self, event: RequestHeaders) -> CommandGenerator[None]:
        """Find out whose business the request is: from here on the stream is of a class for it."""
        request = event.request
        if request.method == "CONNECT":
            self._note_user(request)
        else:
            try:
                for_us = self._open(request)
            except Exception as e:
                return self._refuse_head(e)
            if for_us:
                return AdminExchange.of(self).begin_visit(event)
        if self.service.stopping:
            refusal = self._stopping()
            return AdminExchange.of(self).turn_away(event, refusal)
        if self.call is None:
            return super()._handle_event(event)
        if self.call.route is not Route.PASS:
            return PooledExchange.of(self)._handle_event(event)
        cast(Any, self).__class__ = Passthrough
        return self._handle_event(event)

    # -- the account that the client has chosen, as its user name at this proxy

    def _note_user(self, connect: http.Request) -> None:
        """Note whom the client has named for all that comes through this tunnel."""
        user = self._user(connect)
        if user is None:
            self.service.users.pop(self.context.client, None)
        else:
            self.service.users[self.context.client] = user

    def _user(self, request: http.Request) -> str | None:
        header = request.headers.get(_PROXY_AUTHORIZATION)
        # With proxyauth it is the name of a user, and mitmproxy takes it off.
        if header is None or getattr(self.context.options, "proxyauth", None):
            return None
        return pooled_request.user_of(header)

    def _choose(self, call: PooledRequest, request: http.Request) -> None:
        """Have the chosen account alone serve *call*. What is said to this proxy ends here."""
        user = self.service.users.get(self.context.client)
        if _PROXY_AUTHORIZATION in call.head.headers:
            user = self._user(request) or user
            if not getattr(self.context.options, "proxyauth", None):
                del request.headers[_PROXY_AUTHORIZATION]
        if user is not None and call.route is not Route.PASS:
            why = call.choose(user, self.service.pool.accounts)
            if why is not None:
                logger.warning(f"{call.provider.name}: {why}; request refused")

    # -- tunnels

    def _claims(self, request: http.Request) -> bool:
        return self.service.recognizer.claims(request.host.rstrip(".").lower(), request.port)

    # mitmproxy's own have no types.

    def handle_connect_upstream(self) -> CommandGenerator[None]:
        if self._is_to_us():
            return self._connect_to_us()
        return super().handle_connect_upstream()  # type: ignore[no-untyped-call]

    def _is_to_us(self) -> bool:
        return self.flow.request.host.rstrip(".").lower() == ADMIN_HOST

    def _connect_to_us(self) -> CommandGenerator[None]:
        """A tunnel to ourselves: as the base class does, without a server behind it."""
        self.child_layer = NextLayer(self.context)
        yield from self.handle_connect_finish()

    def handle_connect_regular(self) -> CommandGenerator[None]:
        """Have the reason told in the provider's own envelope where no connection can be made.

        mitmproxy refuses the tunnel, with a page that no client shows.
        """
        if self._is_to_us():
            yield from self._connect_to_us()
            return
        if self.flow.response or not self._claims(self.flow.request):
            yield from super().handle_connect_regular()  # type: ignore[no-untyped-call]
            return
        if self.context.options.connection_strategy == "eager":
            error = yield commands.OpenConnection(self.context.server)
            if error:
                self.context.server = tunnels.failed(self.context.server, error)
        self.child_layer = NextLayer(self.context)
        yield from super().handle_connect_finish()  # type: ignore[no-untyped-call]

    def handle_connect_finish(self) -> CommandGenerator[None]:
        if self._claims(self.flow.request):
            secrets = redaction.secrets_and_passwords(self.context.options)
            tunnels.keep_error(self.child_layer, self.context.server, secrets)
        yield from super().handle_connect_finish()  # type: ignore[no-untyped-call]

    # -- the head

    def _stopping(self) -> LocalResponse:
        """Return what is said to a request that comes while the proxy shuts down."""
        call, self.call = self.call, None
        if call is None:
            headers = (("content-type", "text/plain; charset=utf-8"), ("retry-after", "1"))
            return LocalResponse(503, headers, f"account-pool: {STOPPING}\n".encode())
        return call.provider.refusal(503, STOPPING, STOPPING_PAUSE_S)

    def _open(self, request: http.Request) -> bool:
        """Find out whether the request is the pool's business, and mask it if so.

        Returns whether it is meant for the proxy itself.
        """
        transparent = self.mode is HTTPMode.transparent
        if transparent:
            target = pooled_request.of_connection(self.context)
        elif request.host:
            via = self.context.server.via is not None
            target = pooled_request.of_request(request.host, request.port, request.scheme, via=via)
        else:
            target = self._of_host_header(request)
        if target is not None:
            self.call = self.service.recognizer.recognize(
                request, target, self.context.client, self.service.settings
            )
        if self.call is not None and transparent:
            # mitmproxy sends it there, whatever the request says.
            assert self.context.server.address is not None
            self.call.address = self.context.server.address[:2]
        if self.call is not None:
            if self.service.users or _PROXY_AUTHORIZATION in self.call.head.headers:
                self._choose(self.call, request)
            return False
        if not transparent and self._user(request) is not None:
            del request.headers[_PROXY_AUTHORIZATION]
        if target is None:
            return False
        if transparent:
            return target.name == ADMIN_HOST
        return admin_exchange.is_for_us(target, self.context.client, direct=not request.host)

    def _of_host_header(self, request: http.Request) -> Destination | None:
        """Return where mitmproxy will send a request that was sent to the proxy itself."""
        try:
            name, port = url.parse_authority(request.host_header or "", check=True)
        except ValueError:
            return None  # mitmproxy refuses it
        tls = self.context.client.tls
        return pooled_request.of_request(
            name,
            port or (443 if tls else 80),
            "https" if tls else "http",
            via=self.context.server.via is not None,
        )

    def _refuse_head(self, error: Exception) -> CommandGenerator[None]:
        """Our code failed before it knew whose request this is: it goes nowhere."""
        logger.error(
            f"internal error {type(error).__name__} while reading a request; request refused"
        )
        message = "internal error in the account pool"
        yield SendHttp(
            ResponseProtocolError(self.stream_id, message, SERVER_ERROR),
            self.context.client,
        )
        self.client_state = self.server_state = self.state_errored
        yield DropStream(self.stream_id)


class Passthrough(PoolHttpStream):
    """A request to a host of the pool that is not the pool's: it passes as the client sent it."""

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        try:
            yield from translated(HttpStream._handle_event(self, event), self._restore)
        except Exception as e:
            yield from self.fail(e)

    def start_request_stream(self) -> CommandGenerator[None]:
        if self.flow.response is None:
            yield from super().start_request_stream()
        else:
            yield from self.respond_at_head(self.flow.response)

    def send_response(self, already_streamed: bool = False) -> CommandGenerator[None]:
        if not already_streamed:
            self._stand_in()
        return super().send_response(already_streamed)

    def _stand_in(self) -> None:
        """A tool with a placeholder login asks about itself, and was not known."""
        call, response = self.call, self.flow.response
        assert call is not None
        # Not for a page: it was refused as what it is.
        if response is not None and response.status_code == 401 and call.denied is None:
            answer = call.provider.unknown_login_response(call.head)
            if answer is not None:
                self.flow.response = error_response.local(answer)

    def _restore(self, command: commands.Command) -> commands.Command:
        if isinstance(command, SendHttp) and isinstance(command.event, RequestHeaders):
            assert self.call is not None
            command.event.request = credential_swap.restored(
                command.event.request, self.call.masked
            )
        return command
