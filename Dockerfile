# The image of docs/container.md; apptainer.def builds the same one without Docker.
#   docker build -t tencrop .
#   docker run --rm --gpus all --user $(id -u):$(id -g) -v DIR:/data -w /data tencrop \
#     tencrop train experiment=lenet5_digits
FROM debian:bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git make python3.11 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /tencrop

# Packages first: they stay in the build cache until requirements.lock changes.
COPY Makefile requirements.lock ./
RUN PIP_NO_CACHE_DIR=1 make .venv/locked && rm -rf /var/lib/apt/lists/*

COPY . .
# git refuses to read a repository of another owner, and the image's user is rarely root; without it, runs would be
# recorded without the revision of the code. Later users cannot write byte code either.
RUN make install && .venv/bin/python -m compileall -q src && git config --system --add safe.directory /tencrop
ENV PATH=/tencrop/.venv/bin:$PATH
CMD ["tencrop", "--help"]
