"""Every code block of the documents: C++ compiles (what can run is run), TOML is a config or parses, commands exist."""
import os
import re
import subprocess
import tempfile
import tomllib
import unittest

from support import BIN, DRAY

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
DOCUMENTS = ["README.md", "patterns/README.md", "apps/examples/README.md", "framework/PLUGIN_ABI.md"]
LIBRARIES = os.path.dirname(BIN)

# What a block takes for granted, by something that stands in it: before it, and around it.
HANDLER = "#include <dray/handler.hpp>\n"
ORDER = HANDLER + """
struct OrderPlaced { std::string order_id, email; DRAY_FIELDS(order_id, email) };
class SendConfirmation final : public dray::Handler<OrderPlaced> {
 public:
  dray::Outcome handle(const OrderPlaced&, dray::Delivery&) override { return dray::done(); }
};
"""
CONTEXTS = [
    ("class SendConfirmation final", "", "%s"),
    ("class Audit final", ORDER, "%s"),
    ('delivery.once("charge"', ORDER + """
struct Bank { std::string charge(const OrderPlaced&) { return ""; } } bank;
struct Parcel { void hand_over(const OrderPlaced&) {} } parcel;
""", "void block(dray::Delivery& delivery, const OrderPlaced& order) {\n%s\n(void)receipt; }"),
    ("dray::testing::Harness queue", ORDER + "#undef NDEBUG\n#include <cassert>\n#include <dray/testing.hpp>\n",
     "int main() {\n%s\n}"),
    ('publisher.publish("order.changed"', HANDLER + """
struct Thing { std::string id; DRAY_FIELDS(id) };
""", """void block(dray::Publisher& publisher, const Thing& order, const Thing& report, const Thing& trial,
                dray::UtcTime in_two_weeks, dray::UtcTime in_a_month) {
#pragma GCC diagnostic ignored "-Wunused-result"
%s
}"""),
    ("dray::EndpointKeys{own.public_key", """
#include <dray/pipeline.hpp>
struct Reading { double value = 0; DRAY_FIELDS(value) };
""", "void block(const dray::KeyPair& own, const dray::KeyPair& sensor) {\n%s\n}"),
]


def blocks(language):
    for document in DOCUMENTS:
        with open(os.path.join(ROOT, document), encoding="utf-8") as file:
            text = file.read()
        for match in re.finditer(r"^```" + language + r"\n(.*?)^```$", text, re.S | re.M):
            line = text[:match.start()].count("\n") + 1
            yield f"{document}:{line}", match.group(1)


class Documents(unittest.TestCase):
    def compile(self, where, source, out=None):
        with tempfile.NamedTemporaryFile("w", suffix=".cpp", encoding="utf-8") as file:
            file.write(source)
            file.flush()
            command = ["g++", "-std=c++20", "-Wall", f"-I{ROOT}/framework", f"-I{ROOT}/patterns", file.name]
            command += ["-fsyntax-only"] if out is None else [
                "-DDRAY_STATIC", "-o", out, f"{LIBRARIES}/patterns/libdray_patterns.a",
                f"{LIBRARIES}/framework/libdray_framework.a", "-lzmq", "-ltomlplusplus", "-lspdlog", "-lfmt", "-lisal",
                "-labsl_throw_delegate", "-labsl_raw_logging_internal", "-ldl", "-lpthread"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, f"{where}:\n{source}\n{done.stderr}")

    def test_cpp(self):
        seen = 0
        for where, block in blocks("cpp"):
            seen += 1
            found = [each for each in CONTEXTS if each[0] in block]
            self.assertEqual(len(found), 1, f"{where}: say in CONTEXTS how it is compiled")
            mark, before, around = found[0]
            includes = "".join(line + "\n" for line in block.splitlines() if line.startswith("#include"))
            rest = "\n".join(line for line in block.splitlines() if not line.startswith("#include"))
            source = includes + before + around.replace("%s", rest)
            if "int main" not in around:
                self.compile(where, source)
                continue
            with tempfile.TemporaryDirectory() as folder:
                self.compile(where, source, f"{folder}/block")
                subprocess.run([f"{folder}/block"], check=True)
        self.assertGreaterEqual(seen, 6)

    def test_toml(self):
        seen = 0
        for where, block in blocks("toml"):
            seen += 1
            # Several files in one block each begin with a comment that names them.
            for part in re.split(r"(?m)^(?=# \S+\.toml)", block):
                with self.subTest(where):
                    tomllib.loads(part)
        self.assertGreaterEqual(seen, 5)

    def test_every_key_of_a_config_is_described(self):
        with open(os.path.join(ROOT, "framework", "dray", "config", "config.cpp"), encoding="utf-8") as file:
            keys = set(re.findall(r'[Rr]eader\.\w+\(\s*"([a-z_]+)"', file.read()))
        with open(os.path.join(ROOT, "framework", "CONFIG.md"), encoding="utf-8") as file:
            words = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`[^`]*`", file.read()))))
        self.assertGreater(len(keys), 25)
        self.assertEqual(keys - words, set())

    def test_commands(self):
        seen = set()
        for where, block in blocks("sh"):
            for line in block.splitlines():
                words = re.findall(r"[a-z-]+(?=\s|$)", line.split("#")[0])
                if not line.startswith("dray ") or len(words) < 2:
                    continue
                known = [words[1]]
                if words[1] in ("dead", "group", "spool", "bench", "new"):
                    known.append(words[2])
                seen.add(" ".join(known))
                done = subprocess.run([DRAY, *known, "--help"], capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 0, f"{where}: {line}: {done.stderr}")
                self.assertNotIn("broker-free", done.stdout, f"{where}: {line}: there is no such command")
                for option in re.findall(r"(?<=\s)--[a-z-]+", line.split("#")[0]):
                    self.assertIn(option, done.stdout, f"{where}: {line}")
        self.assertGreater(len(seen), 12)


if __name__ == "__main__":
    unittest.main()
