# syntax=docker/dockerfile:1
# Frontend, registry, scheduler, trace store and the command line: no model framework inside.
# docker build -f deploy/images/services.Dockerfile -t apportion-services:0.2.0 .

ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY services services
COPY gpu_sharing gpu_sharing
# Wheels only: nothing is compiled, so that no compiler is needed.
RUN python -m venv /opt/apportion \
 && /opt/apportion/bin/pip install --only-binary :all: --constraint constraints.txt "setuptools>=77" \
 && /opt/apportion/bin/pip install --prefer-binary --no-build-isolation --constraint constraints.txt ".[s3,signing]" \
 && /opt/apportion/bin/pip uninstall --yes setuptools \
 && /opt/apportion/bin/pip uninstall --yes pip

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="apportion-services" org.opencontainers.image.licenses="Apache-2.0"
RUN pip uninstall --yes pip && groupadd --gid 65532 apportion && useradd --uid 65532 --gid 65532 --home-dir /tmp --no-create-home apportion \
 && install -d -o 65532 -g 65532 /var/lib/apportion
COPY --from=build /opt/apportion /opt/apportion
COPY deploy/images/healthy.py /opt/apportion/healthy.py
ENV PATH=/opt/apportion/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
VOLUME ["/var/lib/apportion"]
EXPOSE 8001 8002 8101 8102
STOPSIGNAL SIGTERM
# The address is the service's own: APPORTION_HEALTH names it where it is not the frontend's.
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s CMD ["python", "/opt/apportion/healthy.py"]
ENTRYPOINT ["apportion"]
CMD ["frontend"]
