"""An SFTP server on loopback, of asyncssh: a folder, for whoever has the password.

python -m tests.storage.sftp_server PORT FOLDER
"""

from __future__ import annotations

import asyncio
import os
import sys

import asyncssh

USER, PASSWORD = "somebody", "anything"


class _Server(asyncssh.SSHServer):
    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (USER, PASSWORD)


class _Folder(asyncssh.SFTPServer):
    """What is above the folder is not there."""

    def __init__(self, channel: asyncssh.SSHServerChannel) -> None:
        super().__init__(channel, chroot=os.fsencode(sys.argv[2]))


async def serve() -> None:
    server = await asyncssh.listen(
        "127.0.0.1",
        int(sys.argv[1]),
        server_factory=_Server,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        sftp_factory=_Folder,
    )
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(serve())
