# docker build -t makemore_pl . && docker run -v "$PWD/outputs:/makemore_pl/outputs" makemore_pl
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make && rm -rf /var/lib/apt/lists/*
ENV OMP_NUM_THREADS=1
WORKDIR /makemore_pl
COPY . .
# PyTorch's CPU index (--build-arg), else pip fetches CUDA too, several GB
ARG PIP_EXTRA_INDEX_URL
RUN make install
CMD ["make", "train"]
