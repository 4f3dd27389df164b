"""Ways in which a file can be wrong."""

import pickle


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))  # what some file systems leave after a crash


def noise(path):
    path.write_bytes(bytes(range(128, 256)) * 4)


def missing(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


def dangling(path):
    path.unlink()
    path.symlink_to("nowhere")


def circular(path):
    path.unlink()
    path.symlink_to(path.name)


def pickled(path):
    """Put a pickle in its place, which makes the file `owned` beside it when it is loaded."""
    path.write_bytes(pickle_that_makes(path.with_name("owned")))


def deep(path):
    path.write_text("[" * 100_000)


def deep_object(path):
    path.write_text('{"a":' * 400 + "1" + "}" * 400)


def long_number(path):
    path.write_text('{"schema": ' + "9" * 5000 + "}")


def bomb(path):
    """YAML whose aliases stand for ten billion items."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(1, 10):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]")
    path.write_text("\n".join(lines) + "\n")


def tagged(path):
    marker = path.with_name("owned")
    path.write_text(f"seed: !!python/object/apply:os.system ['touch {marker}']\n")


def anchors_itself(path):
    path.write_text("a: &a\n  b: *a\n")


EVERY = (truncated, emptied, flipped, zeroed, noise, missing, folder, dangling, circular, pickled)
JSON = (*EVERY, deep, deep_object, long_number)
YAML = (*EVERY, deep, bomb, tagged, anchors_itself)


def pickle_that_makes(path):
    class Payload:
        def __reduce__(self):
            return open, (str(path), "w")

    return pickle.dumps(Payload())
