"""What jobs print: one small program for each kind of output."""

from __future__ import annotations

from dataclasses import dataclass

# What every program begins with. ``say`` writes all of it at once, past Python's buffers; braces are never doubled, as
# an entrypoint is a template.
_PRELUDE = r"""
import os, random, sys, time
lot = random.Random(@NUMBER@)
def say(data, stream=1):
    data = data if isinstance(data, bytes) else data.encode()
    while data:
        data = data[os.write(stream, data):]
def pause(seconds):
    time.sleep(seconds * lot.uniform(0.5, 1.5))
def words(size):
    return "".join(lot.choice("abcdefghij klmno pqrstuvwxyz") for _ in range(size))
"""


@dataclass(frozen=True)
class Kind:
    """
    A kind of output.

    :param program: prints it; Python, with the prelude before it.
    :param status: how its jobs end.
    """

    name: str
    program: str
    status: str = "SUCCEEDED"

    def entrypoint(self, number: int) -> list[str]:
        """Return the entrypoint of one job; its number makes it differ from others of its kind."""
        return ["python", "-c", _PRELUDE.replace("@NUMBER@", str(number)) + self.program]


KINDS = [
    Kind("quick", r"""
say('{"event": "not ours", "level": "error"}\n%s %(name)s {} {0} \\n\n<b>bold</b> &amp; ::group::name\n')
"""),
    Kind("slow_on_both_streams", r"""
for n in range(40):
    say(f"out {n} {words(lot.randrange(100))}\n")
    say(f"err {n} {words(lot.randrange(100))}\n", 2)
    pause(0.5)
"""),
    Kind("huge_lines", r"""
say("before\n" + words(200_000) + "\n")
pause(2)
# characters of two, three and four bytes, so that no record can be cut anywhere
say("".join(lot.choice("xäß€漢😀") for _ in range(300_000)) + "\nbetween\n" + "é" * 65_536 + "\n")
pause(2)
say("x" * 65_535 + "\n" + "y" * 65_536 + "\n" + "z" * 131_073 + "\nafter\n")
"""),
    Kind("growing_line", r"""
say("before\n")
for n in range(12):
    say(f"[{n}] " + words(lot.randrange(40_000)))
    pause(1)
say("\nafter\n")
"""),
    Kind("in_pieces_and_no_newline", r"""
for n in range(10):
    say(f"half a line {n}, ")
    pause(0.7)
    say("and the rest of it\n" if n % 3 else "the rest\nthe next in full\n")
say("no newline at the end")
pause(1)
say(", still none")
"""),
    Kind("binary", r"""
some = bytes(byte for byte in range(256) if byte not in b"\r\n")
for n in range(60):
    say(bytes(lot.choice(some) for _ in range(lot.randrange(300))) + b"\n")
    if n % 10 == 0:
        say(b"\xff\xfe\n\xc3\n\xe2\x82\n\xf0\x9f\x98\n\xed\xa0\x80\n\x00\n")
        pause(0.8)
"""),
    Kind("emoji", r"""
line = "👩‍👩‍👧‍👦 🇺🇳 e\u0301 漢字 עברית 😀 e\U0001f3fd\n".encode()
for n in range(20):
    say(line * lot.randrange(1, 40))
    # the file ends in the middle of a character for a while
    cut = lot.randrange(1, len(line))
    say(line[:cut])
    pause(0.5)
    say(line[cut:])
"""),
    Kind("colours_and_separators", r"""
for n in range(15):
    say(f"\x1b[3{n % 8}mcolour {n}\x1b[0m \x1b[1;4mbold\x1b[0m\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n")
    # what str.splitlines would take for line ends
    say("one\x0btwo\x0cthree\x1cfour\x1dfive\x1esix\x85seven\u2028eight\u2029nine\ufeff\x7f\x08\n")
    pause(0.3)
"""),
    Kind("bars", r"""
for part in range(3):
    say(f"part {part} begins\n")
    for n in range(0, 101, 4):
        done = "#" * (n // 4)
        say(f"\r{part}: {n:3}%|{done:25}| {n}/100 [{lot.uniform(1, 99):.2f} it/s]", 2)
        pause(0.12)
    say(("\n", "\r\n", "\r" + " " * 70 + "\rpart 2 is done\n")[part], 2)
say("warming up\rready\nthis one never ends   0%", 2)
for n in range(0, 101, 20):
    pause(0.5)
    say(f"\rthis one never ends {n:3}%", 2)
"""),
    Kind("crlf", r"""
for n in range(12):
    say(f"line {n}\r\n\r\n  another\r\n" * lot.randrange(1, 30))
    pause(0.5)
say("mixed\nends\r\n\n\r\n")
"""),
    Kind("blank_lines_and_indentation", r"""
say("\n\n\n")
for n in range(12):
    say("def f():\n    \n\treturn 1   \n\n\n" + "\n" * lot.randrange(4) + " " * lot.randrange(20) + "deep\n \n")
    pause(0.6)
    if n % 4 == 0:
        say("\n" * lot.randrange(3_000))
say("\n\n  \n\n")
"""),
    Kind("nothing", r"""
pause(2)
"""),
    Kind("megabytes", r"""
lines = [f"{n} {words(lot.randrange(200))}\n" for n in range(1_000)]
for n in range(120):
    say(f"block {n}\n" + "".join(lot.sample(lines, 1_000)))
"""),
    Kind("megabytes_slowly", r"""
lines = [f"{n} {words(lot.randrange(200))}\n" for n in range(1_000)]
for n in range(60):
    say(f"block {n}\n" + "".join(lot.sample(lines, 1_000)))
    pause(0.25)
"""),
    Kind("fails", r"""
say("soon\n")
def fail(depth):
    if depth == 0:
        raise ValueError("no such thing\n\n  as this: 漢字")
    fail(depth - 1)
fail(5)
""", "FAILED"),
    Kind("fails_late", r"""
for n in range(16):
    say(f"step {n}\n", 1 + n % 2)
    pause(0.5)
say("and out")
sys.exit(3)
""", "FAILED"),
    Kind("quotes_itself", r"""
# as a supervisor does that shows once more what a child of its own said last
said = ""
for n in range(30):
    for m in range(lot.randrange(1, 250)):
        now = time.time()
        line = time.strftime("%Y-%m-%d %H:%M:%S") + f",{int(now * 1000) % 1000:03} worker {m}: {words(90)}\n"
        said += line
        say(line)
    if n % 3 == 2:
        say("".join(said.splitlines(True)[-lot.choice((20, 300, 2_000)):]))
    pause(0.6)
"""),
    Kind("same_blocks", r"""
block = "".join(f"epoch {n}: {words(60)}\n" for n in range(600))
for n in range(24):
    say(block * lot.randrange(1, 4))
    pause(0.6)
"""),
    Kind("timestamps", r"""
import logging
logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
for n in range(40):
    for m in range(lot.randrange(300)):
        logging.info("step %s of %s: %s", m, n, words(80))
    pause(0.45)
"""),
    Kind("same_lines", r"""
for n in range(20):
    say("the same line\n" * lot.randrange(1, 3_000))
    pause(0.5)
"""),
]  # fmt: skip
