"""The programs that the jobs run. Each prints another kind of output."""

from __future__ import annotations

from dataclasses import dataclass

# Every program begins with this code. ``write`` bypasses Python's buffers. No program contains double braces, because
# the entrypoint is a template.
_PRELUDE = r"""
import os, random, sys, time
rng = random.Random(@NUMBER@)
def write(data, stream=1):
    data = data if isinstance(data, bytes) else data.encode()
    while data:
        data = data[os.write(stream, data):]
def pause(seconds):
    time.sleep(seconds * rng.uniform(0.5, 1.5))
def random_text(size):
    return "".join(rng.choice("abcdefghij klmno pqrstuvwxyz") for _ in range(size))
"""


@dataclass(frozen=True)
class JobProgram:
    """
    A program that prints one kind of output.

    :param source: Python code, without the prelude.
    :param status: the final status of its jobs.
    """

    name: str
    source: str
    status: str = "SUCCEEDED"

    def entrypoint(self, number: int) -> list[str]:
        """Return the entrypoint of one job. Its number seeds the random generator of the program."""
        return ["python", "-c", _PRELUDE.replace("@NUMBER@", str(number)) + self.source]


JOB_PROGRAMS = [
    JobProgram("quick", r"""
write('{"event": "not ours", "level": "error"}\n%s %(name)s {} {0} \\n\n<b>bold</b> &amp; ::group::name\n')
"""),
    JobProgram("slow_on_both_streams", r"""
for n in range(40):
    write(f"out {n} {random_text(rng.randrange(100))}\n")
    write(f"err {n} {random_text(rng.randrange(100))}\n", 2)
    pause(0.5)
"""),
    JobProgram("huge_lines", r"""
write("before\n" + random_text(200_000) + "\n")
pause(2)
# characters of one to four bytes: a record must not end within a character
write("".join(rng.choice("xäß€漢😀") for _ in range(300_000)) + "\nbetween\n" + "é" * 65_536 + "\n")
pause(2)
write("x" * 65_535 + "\n" + "y" * 65_536 + "\n" + "z" * 131_073 + "\nafter\n")
"""),
    JobProgram("growing_line", r"""
write("before\n")
for n in range(12):
    write(f"[{n}] " + random_text(rng.randrange(40_000)))
    pause(1)
write("\nafter\n")
"""),
    JobProgram("partial_lines_and_no_final_newline", r"""
for n in range(10):
    write(f"half a line {n}, ")
    pause(0.7)
    write("and the rest of it\n" if n % 3 else "the rest\nthe next in full\n")
write("no newline at the end")
pause(1)
write(", still none")
"""),
    JobProgram("binary", r"""
some = bytes(byte for byte in range(256) if byte not in b"\r\n")
for n in range(60):
    write(bytes(rng.choice(some) for _ in range(rng.randrange(300))) + b"\n")
    if n % 10 == 0:
        write(b"\xff\xfe\n\xc3\n\xe2\x82\n\xf0\x9f\x98\n\xed\xa0\x80\n\x00\n")
        pause(0.8)
"""),
    JobProgram("emoji", r"""
line = "👩‍👩‍👧‍👦 🇺🇳 e\u0301 漢字 עברית 😀 e\U0001f3fd\n".encode()
for n in range(20):
    write(line * rng.randrange(1, 40))
    # the log file ends within a character for a while
    cut = rng.randrange(1, len(line))
    write(line[:cut])
    pause(0.5)
    write(line[cut:])
"""),
    JobProgram("colours_and_separators", r"""
for n in range(15):
    write(f"\x1b[3{n % 8}mcolour {n}\x1b[0m \x1b[1;4mbold\x1b[0m\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n")
    # characters that str.splitlines takes for line ends
    write("one\x0btwo\x0cthree\x1cfour\x1dfive\x1esix\x85seven\u2028eight\u2029nine\ufeff\x7f\x08\n")
    pause(0.3)
"""),
    JobProgram("progress_bars", r"""
for part in range(3):
    write(f"part {part} begins\n")
    for n in range(0, 101, 4):
        done = "#" * (n // 4)
        write(f"\r{part}: {n:3}%|{done:25}| {n}/100 [{rng.uniform(1, 99):.2f} it/s]", 2)
        pause(0.12)
    write(("\n", "\r\n", "\r" + " " * 70 + "\rpart 2 is done\n")[part], 2)
write("warming up\rready\nthis one never ends   0%", 2)
for n in range(0, 101, 20):
    pause(0.5)
    write(f"\rthis one never ends {n:3}%", 2)
"""),
    JobProgram("crlf", r"""
for n in range(12):
    write(f"line {n}\r\n\r\n  another\r\n" * rng.randrange(1, 30))
    pause(0.5)
write("mixed\nends\r\n\n\r\n")
"""),
    JobProgram("blank_lines_and_indentation", r"""
write("\n\n\n")
for n in range(12):
    write("def f():\n    \n\treturn 1   \n\n\n" + "\n" * rng.randrange(4) + " " * rng.randrange(20) + "deep\n \n")
    pause(0.6)
    if n % 4 == 0:
        write("\n" * rng.randrange(3_000))
write("\n\n  \n\n")
"""),
    JobProgram("no_output", r"""
pause(2)
"""),
    JobProgram("megabytes", r"""
lines = [f"{n} {random_text(rng.randrange(200))}\n" for n in range(1_000)]
for n in range(120):
    write(f"block {n}\n" + "".join(rng.sample(lines, 1_000)))
"""),
    JobProgram("megabytes_slowly", r"""
lines = [f"{n} {random_text(rng.randrange(200))}\n" for n in range(1_000)]
for n in range(60):
    write(f"block {n}\n" + "".join(rng.sample(lines, 1_000)))
    pause(0.25)
"""),
    JobProgram("fails", r"""
write("soon\n")
def fail(depth):
    if depth == 0:
        raise ValueError("no such thing\n\n  as this: 漢字")
    fail(depth - 1)
fail(5)
""", "FAILED"),
    JobProgram("fails_late", r"""
for n in range(16):
    write(f"step {n}\n", 1 + n % 2)
    pause(0.5)
write("and out")
sys.exit(3)
""", "FAILED"),
    JobProgram("repeats_own_log_lines", r"""
# as a supervisor does that prints the last lines of a child process again
written = ""
for n in range(30):
    for m in range(rng.randrange(1, 250)):
        now = time.time()
        line = time.strftime("%Y-%m-%d %H:%M:%S") + f",{int(now * 1000) % 1000:03} worker {m}: {random_text(90)}\n"
        written += line
        write(line)
    if n % 3 == 2:
        write("".join(written.splitlines(True)[-rng.choice((20, 300, 2_000)):]))
    pause(0.6)
"""),
    JobProgram("same_blocks", r"""
block = "".join(f"epoch {n}: {random_text(60)}\n" for n in range(600))
for n in range(24):
    write(block * rng.randrange(1, 4))
    pause(0.6)
"""),
    JobProgram("timestamps", r"""
import logging
logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
for n in range(40):
    for m in range(rng.randrange(300)):
        logging.info("step %s of %s: %s", m, n, random_text(80))
    pause(0.45)
"""),
    JobProgram("same_lines", r"""
for n in range(20):
    write("the same line\n" * rng.randrange(1, 3_000))
    pause(0.5)
"""),
]  # fmt: skip
