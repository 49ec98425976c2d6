"""The package itself: the command in it, its documentation, the README's lines."""

import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import folio

REPOSITORY = Path(__file__).resolve().parents[3]
#: The program that pip installed.
FOLIO = os.path.join(sysconfig.get_path("scripts"), "folio")


def output(*command: str, code: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_command_is_installed():
    assert output(FOLIO, "--version").split() == ["folio", folio.__version__]
    assert output(sys.executable, "-m", "folio", "--version") == output(FOLIO, "--version")
    assert "did you mean 'chrs'" in output(FOLIO, "train", "--tokenizer_type", "chars", code=2)
    assert "error: " in output(FOLIO, "generate", "nowhere", code=1)
    assert output(FOLIO, "corpus").startswith("First Citizen:")


def test_ctrl_c_ends_the_command_as_the_program():
    """`train` saves and exits with 130; a command that does not listen to signals is ended by the signal."""
    small = ["--n_emb", "16", "--n_heads", "2", "--n_blocks", "1", "--block_sizes", "16", "--precision", "f32"]
    train = [FOLIO, "train", "--data", "text.txt", "--run_dir", "run", "--num_epochs", "100000", "--json", *small]
    with subprocess.Popen(train, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "parameters" in line:
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert folio.Run("run").state == "stopped"
    generate = [FOLIO, "generate", "run", "--max_new_tokens", "100000000"]
    with subprocess.Popen(generate, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == -signal.SIGINT


def test_the_lines_of_the_readme_train_and_generate(tmp_path):
    readme = (REPOSITORY / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(code.splitlines()) <= 10
    (tmp_path / "lines.py").write_text(code)
    # Without the optional packages, as after `pip install folio`.
    program = "import sys; sys.modules.update(pandas=None, matplotlib=None); exec(open('lines.py').read())"
    printed = output(sys.executable, "-c", program)
    assert "Epoch: 1/" in printed and "ROMEO:" in printed


def test_the_guide_and_the_documentation_name_what_exists():
    guide = (REPOSITORY / "docs/guide/9-python.md").read_text()
    for name in re.findall(r"`folio\.(\w+)", guide):
        assert hasattr(folio, name), name
    for name in folio.__all__:
        assert getattr(folio, name).__doc__ or name == "__version__", name
        assert name.startswith("__") or name in guide, name


def test_the_package_is_typed():
    package = Path(folio.__file__).parent
    assert (package / "py.typed").is_file() and (package / "_folio.pyi").is_file()
    stub = (package / "_folio.pyi").read_text()
    from folio import _folio

    for name in vars(_folio):
        assert name.startswith("__") or re.search(rf"^(class|def) {name}\b", stub, re.MULTILINE), name
    for owner in (_folio.Tokenizer, _folio.Training, _folio.Model, _folio.Generation):
        for name in vars(owner):
            assert name.startswith("__") or re.search(rf"^    def {name}\(", stub, re.MULTILINE), name
