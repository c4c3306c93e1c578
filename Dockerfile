# docker build --target cpu  -t coe .       && docker run -p 127.0.0.1:8000:8000 -e COE_API_KEYS -v "$PWD/models:/models" coe
# docker build --target cuda -t coe:cuda .  && docker run --gpus all -p 127.0.0.1:8000:8000 -e COE_API_KEYS -v "$PWD/models:/models" coe:cuda
# Keys: COE_API_KEYS for asking, COE_ADMIN_KEYS for administering; without any, the server makes some and says where they are.
# Names: COE_ALLOWED_HOSTS=coe lets other containers call it by the name of its service.
# A roster of your own: ... -v "$PWD/specialists.yaml:/app/specialists.yaml" coe serve --host 0.0.0.0 --roster specialists.yaml

ARG CUDA=12.8.1

FROM python:3.11-slim-bookworm AS build-cpu
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The versions are pyproject.toml's and the installer's. Compiled for any CPU with AVX2, not for the builder's own.
RUN python3 tools/install.py --venv /opt/coe --extras demo --no-editable --portable --backend cpu

FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS build-cuda
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv gcc g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN python3 tools/install.py --venv /opt/coe --extras demo --no-editable --portable --backend cuda

# An environment's programs name the Python that made it, so each runtime has the same one at the same place.
FROM nvidia/cuda:${CUDA}-runtime-ubuntu24.04 AS cuda
RUN apt-get update && apt-get install -y --no-install-recommends python3 libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --user-group coe && install -d -o coe -g coe /app /models
COPY --from=build-cuda /opt/coe /opt/coe
COPY specialists.yaml /app/specialists.yaml
ENV PATH=/opt/coe/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/models/.hub \
    ORT_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1 HF_HUB_DISABLE_UPDATE_CHECK=1
WORKDIR /app
RUN ln -s /models /app/models
USER coe
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
CMD ["coe", "serve", "--host", "0.0.0.0", "--port", "8000"]

FROM python:3.11-slim-bookworm AS cpu
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --user-group coe && install -d -o coe -g coe /app /models
COPY --from=build-cpu /opt/coe /opt/coe
COPY specialists.yaml /app/specialists.yaml
ENV PATH=/opt/coe/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/models/.hub \
    ORT_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1 HF_HUB_DISABLE_UPDATE_CHECK=1
WORKDIR /app
RUN ln -s /models /app/models
USER coe
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
CMD ["coe", "serve", "--host", "0.0.0.0", "--port", "8000"]
