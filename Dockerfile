# The proxy in a small image:  docker build -t shadowcat .
#   docker run -p 127.0.0.1:8080:8080 -v shadowcat:/data -e SHADOWCAT_UPSTREAM=http://host.docker.internal:3001/mcp shadowcat
# Every setting is an environment variable (README.md). tests/commands/test_container.py runs these steps.

FROM python:3.13-slim AS build
WORKDIR /build
COPY pyproject.toml constraints.txt .ci/pins.py ./
RUN python pins.py --build > build.txt \
 && python pins.py --extra redis > runtime.txt \
 && python pins.py --extra redis --extra demo > sample.txt \
 && python -m pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r build.txt
COPY README.md LICENSE ./
COPY app app
COPY stores stores
RUN python -m hatchling build -t wheel -d dist

# What both images have: a user of their own, and no bytecode to write.
FROM python:3.13-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin shadowcat
WORKDIR /

# The sample MCP server of compose.yaml.
FROM base AS sample
RUN --mount=type=bind,from=build,source=/build,target=/build \
    python -m pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r /build/sample.txt \
 && python -m pip install --quiet --no-cache-dir --disable-pip-version-check --no-deps /build/dist/*.whl
USER shadowcat
EXPOSE 3001
CMD ["python", "-m", "shadowcat.demo.server", "--host", "0.0.0.0", "--port", "3001"]

FROM base AS runtime
RUN --mount=type=bind,from=build,source=/build,target=/build \
    python -m pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r /build/runtime.txt \
 && python -m pip install --quiet --no-cache-dir --disable-pip-version-check --no-deps /build/dist/*.whl
# The default store is a file in the folder where the command runs.
WORKDIR /data
RUN chown shadowcat /data
VOLUME /data
USER shadowcat
EXPOSE 8080
# Past any HTTP_PROXY of the environment: this is the container's own address.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
  CMD ["python", "-c", "from urllib.request import ProxyHandler as P, build_opener as o; o(P({})).open('http://127.0.0.1:8080/healthz', timeout=2)"]
CMD ["shadowcat", "serve", "--host", "0.0.0.0"]
