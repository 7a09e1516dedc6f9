# The proxy only. docs/containers.md explains how to run it safely.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY addon addon
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(ls /wheels/*.whl)[fleet]"

# Owns the files on the volumes; 1000 is the first user of most Linux machines.
ARG UID=1000
RUN useradd --non-unique --uid "${UID}" --create-home pool \
    && mkdir -p /home/pool/.mitmproxy /home/pool/.config/account-pool \
    && chown -R pool: /home/pool
USER ${UID}
WORKDIR /home/pool
ENV HOME=/home/pool PYTHONUNBUFFERED=1
# Certificate, state and admin token; accounts.yaml and what it names.
VOLUME ["/home/pool/.mitmproxy", "/home/pool/.config/account-pool"]

EXPOSE 8080
# The same question that `account-pool run` asks: does it answer, has it read its accounts?
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import sys; from account_pool.cli.api import probe; sys.exit(not getattr(probe(8080), 'ready', False))"]

ENTRYPOINT ["account-pool", "serve"]
# Loopback would be the container's own. This alone lets nobody in: all clients are remote
# here, and those need pool_allow_remote or proxyauth.
CMD ["--listen-host", "0.0.0.0"]
