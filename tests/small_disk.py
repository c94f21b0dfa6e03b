"""A disk that is soon full."""

import os
import subprocess


class SmallDisk:
    """A file system in memory of a size that may change."""

    def __init__(self, folder):
        self.folder = folder
        self.folder.mkdir()

    def mount(self):
        command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(self.folder)]
        return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0

    def resize(self, kilobytes):
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(self.folder)], check=True)

    def unmount(self):
        subprocess.run(["umount", "-l", str(self.folder)], check=True)
