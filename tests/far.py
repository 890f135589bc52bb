"""An S3 server of this machine, and slides as far away as tests go."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from s3fs import S3FileSystem

from wsi_mil.remote import CacheParams, Url, facts_of
from wsi_mil.remote.slide import RemoteFile, RemoteSlide

BUCKET = "slides-of-tests"


@contextmanager
def s3_server() -> Iterator[str]:
    """A server of moto with an empty bucket, and the environment of whoever asks it; its address."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    host = "127.0.0.1"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(f"http://{host}:{port}").items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        client.close()
        S3FileSystem.clear_instance_cache()  # those of another server, which has gone
        try:
            yield f"http://{host}:{port}"
        finally:
            S3FileSystem.clear_instance_cache()
            server.stop()


def environment(address: str) -> dict[str, str]:
    """What tells s3fs, through botocore, to ask this machine and nobody else."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def upload(folder: Path, url: str) -> None:
    """Copy a folder to an address."""
    system, _ = fsspec.core.url_to_fs(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            write(f"{url.rstrip('/')}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    system.invalidate_cache()


def write(url: str, data: bytes) -> None:
    """Put bytes at an address."""
    system, path = fsspec.core.url_to_fs(url)
    system.pipe_file(path, data)


def in_memory(name: str, data: bytes, cache: Path, size: str = "10MB") -> RemoteSlide:
    """A slide in fsspec's memory."""
    write(f"memory://{name}", data)
    return slide_at(f"memory://{name}", cache, size)


def slide_at(url: str, cache: Path, size: str = "10MB") -> RemoteSlide:
    """A slide of one file at an address."""
    facts = facts_of(Url(url))
    return RemoteSlide((RemoteFile(Url(url), Url(url).name, facts.size, facts.version),), CacheParams(cache, size))


def noise(count: int, seed: int = 0) -> bytes:
    """So many bytes that nothing makes shorter."""
    return np.random.default_rng(seed).bytes(count)


def taken(cache: Path) -> int:
    """The bytes of all files in a cache that are slides, or become such."""
    total = 0
    for parent, _, names in os.walk(cache / "staged"):  # which minds no folder that vanishes meanwhile
        for name in names if "files" in Path(parent).parts else ():
            with suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


Attrs = dict[str, Any]
