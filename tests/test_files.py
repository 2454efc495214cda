import hashlib

from longtake.files import joint_digest, natural_key


def test_numbers_count_as_numbers():
    assert sorted(["f10", "f9", "10", "a"], key=natural_key) == ["10", "a", "f9", "f10"]


def test_one_hash_of_many_files():
    one, other = (hashlib.sha256(text).digest() for text in (b"one", b"other"))
    assert joint_digest([one]) == hashlib.sha256(b"one").hexdigest()
    assert joint_digest([one, other]) == hashlib.sha256(one + other).hexdigest() != joint_digest([other, one])
