# The same two commands in a container:
#   docker build -t tencrop . && docker run --rm -it --gpus all --shm-size 8g -v DATA:/data tencrop make quickstart
FROM debian:bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git make python3.11 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /tencrop

# Packages first: they stay in the build cache until requirements.lock changes.
COPY Makefile requirements.lock ./
RUN PIP_NO_CACHE_DIR=1 make .venv/locked && rm -rf /var/lib/apt/lists/*

COPY . .
RUN make install
ENV PATH=/tencrop/.venv/bin:$PATH
CMD ["make", "help"]
