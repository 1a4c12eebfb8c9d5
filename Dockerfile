# syntax=docker/dockerfile:1
# The gateway: one image for the API, the worker, beat and `flask …`.
#
# The base is pinned to Python's minor version and Debian's release, and built anew each week
# (.github/workflows/image.yml): a tag pinned to the patch would keep what Debian has repaired.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
# First the requirements alone: they change less often than the code, and this layer is reused.
COPY requirements.txt /tmp/requirements.txt
# The file has all there is: pip need not look for more, and takes nothing that has another hash.
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement /tmp/requirements.txt \
    && /opt/venv/bin/pip check \
    # What is installed is fixed; nothing may add to it later.
    && /opt/venv/bin/pip uninstall --yes pip setuptools
COPY payments_app /app/payments_app
COPY migrations /app/migrations
COPY wsgi.py celery_worker.py gunicorn.conf.py /app/
# The file system is read-only later: compile now.
RUN /opt/venv/bin/python -m compileall -q /app


FROM python:3.11-slim-bookworm AS runtime
# A number, so that Kubernetes can see that it is not root.
RUN groupadd --gid 10001 maramoja \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin maramoja
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001


# The provider's stand-in, for trying out: docker build --target simulator
FROM runtime AS simulator
COPY simulator /app/simulator
EXPOSE 9010
CMD ["python", "-m", "simulator", "--host", "0.0.0.0", "--port", "9010"]


# Backups and the way back: PostgreSQL's own programs, which must not be older than the server, and our scripts.
# docker build --target backup
FROM postgres:18-bookworm AS backup
RUN groupadd --gid 10001 maramoja \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin maramoja
COPY deploy/backup /usr/local/lib/maramoja-backup
ENV PATH=/usr/local/lib/maramoja-backup:$PATH
WORKDIR /backups
USER 10001:10001
# Not the image's own, which would start a server.
ENTRYPOINT []
CMD ["scheduled.sh", "/backups"]


# Last, so that it is what `docker build .` makes.
FROM runtime AS gateway
COPY --from=build /app /app
EXPOSE 8000
# The API's; worker and beat are asked at their own ports (docker-compose.yml, deploy/kubernetes).
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
CMD ["gunicorn", "wsgi:app"]
# At the end: a new revision makes no layer above anew.
ARG VERSION=local
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Maramoja" \
    org.opencontainers.image.description="A self-hosted, multi-tenant mobile-money payments gateway that charges once." \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
