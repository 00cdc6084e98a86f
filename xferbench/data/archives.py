"""Name the archives of images that are not read, with the command that exports each to class folders. Reads folders."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from xferbench.core.errors import UserError
from xferbench.data.listing import IMAGE_SUFFIXES, list_files

if TYPE_CHECKING:
    from pathlib import Path

# The first argument of each program is the archive or its folder, and the second is the new folder.
EXPORT_WEBDATASET = (
    "import sys,pathlib as p,tarfile;t=tarfile.open(sys.argv[1]);n={m.name:m for m in t if m.isfile()};"
    "g=lambda k:t.extractfile(n[k]).read();"
    "[(o:=p.Path(sys.argv[2],p.Path(g(k.rsplit('.',1)[0]+'.cls').decode().strip()).name,p.Path(k).name))"
    ".parent.mkdir(parents=True,exist_ok=True) or o.write_bytes(g(k)) "
    "for k in n if k.rsplit('.',1)[-1] in ('png','jpg','jpeg','webp')]"
)
NAMES = {
    ".parquet": "a Parquet file",
    ".arrow": "an Arrow file",
    ".tar": "a tar archive (WebDataset)",
    ".gz": "a compressed archive",
    ".tgz": "a compressed archive",
    ".zip": "a zip archive",
    ".7z": "an archive",
    ".tfrecord": "a file of TensorFlow records",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
}
EXPECTED = "a folder of class folders, or with metadata.csv; or an npz file"


def find_archive(folder: Path) -> Path | None:
    """Return an archive in a folder that has no image files, or None."""
    files = list(list_files(folder))
    if any(path.suffix.lower() in IMAGE_SUFFIXES for path in files):
        return None
    return next((path for path in files if path.suffix.lower() in NAMES), None)


def refuse_archive(path: Path) -> None:
    """Raise a UserError for a file that is an archive of images; it has the command that exports the images."""
    suffix = path.suffix.lower()
    if suffix in NAMES:
        raise UserError(f"{path}: not read as images", found=NAMES[suffix], expected=EXPECTED, do=export_command(path))


def export_command(path: Path) -> str:
    """Return the command that writes the images of an archive into class folders below ``images``."""
    archive = shlex.quote(str(path))
    saved = "pip install 'xferbench[datasets]', and name datasets:DIR in place of folder:DIR"
    commands = {
        ".parquet": saved,
        ".arrow": saved,
        ".tar": f'run python -c "{EXPORT_WEBDATASET}" {archive} images; then name folder:images',
        ".zip": f"run unzip {archive} -d images; then name folder:images",
        ".gz": f"unpack it, such as by mkdir images && tar -xf {archive} -C images; then name folder:images",
        ".tgz": f"run mkdir images && tar -xf {archive} -C images; then name folder:images",
    }
    return commands.get(path.suffix.lower(), "export the images to class folders with the program that wrote the file")
