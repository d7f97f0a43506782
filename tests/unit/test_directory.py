"""The chunk directory: who holds which chunk."""

from gridfs.meta.directory import ChunkDirectory


def filled() -> ChunkDirectory:
    directory = ChunkDirectory()
    for ino, index, servers in ((5, 0, ("a",)), (5, 1, ("b", "a")), (5, 7, ("a",)), (6, 0, ("b",))):
        directory.place(ino, index, servers)
    return directory


def test_a_placed_chunk_is_found_and_any_other_is_a_hole() -> None:
    directory = filled()
    assert directory.servers(5, 1) == ("b", "a")
    assert directory.servers(5, 2) == directory.servers(9, 0) == ()
    assert directory.chunks(5) == {0: ("a",), 1: ("b", "a"), 7: ("a",)}
    assert directory.chunks(9) == {}


def test_chunks_are_counted_by_inode() -> None:
    directory = filled()
    assert [directory.count(ino) for ino in (5, 6, 9)] == [3, 1, 0]
    assert [len(directory.chunks(ino)) for ino in (5, 6, 9)] == [3, 1, 0]


def test_a_first_chunk_alone_gets_company_and_loses_it_again() -> None:
    directory = ChunkDirectory()
    directory.place(5, 0, ("a",))
    directory.place(5, 3, ("b",))
    assert directory.chunks(5) == {0: ("a",), 3: ("b",)}
    directory.place(5, 0, ("c",))
    assert directory.drop_from(5, 1) == [3]
    directory.place(5, 0, ("d",))
    assert list(directory) == [(5, 0, ("d",))]
    assert directory.drop_from(5, 0) == [0]
    directory.place(5, 3, ("b",))
    directory.place(5, 0, ("a",))
    assert sorted(directory) == [(5, 0, ("a",)), (5, 3, ("b",))]
    assert (len(directory), directory.count(5)) == (2, 2)


def test_placing_again_replaces_and_counts_once() -> None:
    directory = filled()
    assert len(directory) == 4
    directory.place(5, 1, ("c",))
    assert directory.servers(5, 1) == ("c",)
    assert len(directory) == 4


def test_dropping_tells_what_there_was_and_leaves_the_rest() -> None:
    directory = filled()
    assert sorted(directory.drop_from(5, 1)) == [1, 7]
    assert directory.drop_from(5, 1) == directory.drop_from(9, 0) == []
    assert list(directory) == [(5, 0, ("a",)), (6, 0, ("b",))]
    assert directory.drop_from(5, 0) == [0]
    assert list(directory) == [(6, 0, ("b",))]
    assert len(directory) == 1


def test_asking_about_a_hole_places_nothing() -> None:
    directory = ChunkDirectory()
    directory.servers(1, 1)
    directory.chunks(1)
    assert list(directory) == []


def test_iteration_yields_every_chunk() -> None:
    directory = filled()
    assert len(list(directory)) == len(directory) == 4
