"""Files that are whole or not there."""

import pytest

from surgery.core.atomic_file import write_atomically

resource = pytest.importorskip("resource")


@pytest.fixture
def _small_files():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_small_files")
def test_a_limit_on_the_size_of_files_leaves_what_was_there(tmp_path):
    path = tmp_path / "m.safetensors"
    write_atomically(path, b"before")
    with pytest.raises(OSError, match=r"cannot write '.*m\.safetensors': File too large"):
        write_atomically(path, bytes(100_000))
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
