"""An S3 server in a process of its own, that a test may stop for a while."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from brainseg.storage.remote import RemoteFolder, local_files

BUCKET = "bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Store:
    """moto's server with one bucket; a guarded one knows nobody's keys."""

    def __init__(self, log: Path, *, guarded: bool = False) -> None:
        self.port = free_port()
        code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{self.port}'])"
        with log.open("ab") as file:
            command = [sys.executable, "-c", code]
            guard = {"INITIAL_NO_AUTH_ACTION_COUNT": "1"} if guarded else {}
            env = os.environ | guard
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=env)
        self._create_bucket()

    def url(self, path: str, bucket: str = BUCKET) -> str:
        query = f"?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        return f"s3://{bucket}/{path}{query}"

    def folder(self, path: str = "") -> RemoteFolder:
        return RemoteFolder(self.url(path))

    def upload(self, source: Path, path: str) -> str:
        """Send a folder without touching its files' times; return its URL."""
        folder = self.folder(path)

        def upload(name: str) -> None:
            folder.write(name, (source / name).read_bytes())

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(upload, local_files(source)))
        return self.url(path)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _create_bucket(self) -> None:
        import boto3
        from botocore.exceptions import EndpointConnectionError

        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        url = f"http://127.0.0.1:{self.port}"
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
        end = time.monotonic() + 60
        while True:
            try:
                client.create_bucket(Bucket=BUCKET)
                return
            except EndpointConnectionError:
                assert time.monotonic() < end, "moto did not start"
                time.sleep(0.1)
