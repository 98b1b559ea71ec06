"""How the package's code is written: its prose, and the sizes of files and functions."""

import ast
import inspect
import io
import re
import tokenize
from pathlib import Path

import pytest

import perceptual_losses

PACKAGE = Path(perceptual_losses.__file__).parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
KERNELS = {"constexpr_function", "entry", "inlined", "jit", "kernel", "njit", "ordered", "overload"}

# A text that begins with one of these words is a fragment, or the thing is not named.
NEVER_FIRST = re.compile(r"(?:From|Of|That|What|With)\b", re.IGNORECASE)
FRAGMENT = re.compile(
    # A preposition or a conjunction.
    r"(?:About|Above|After|And|As|At|Because|Before|Below|Beside|But|By|During|For|In|Into|On|Or"
    r"|Out|Over|Such|Than|Then|Through|To|Under|Until|Upon|Which|While|Whose|Within|Without)\b"
    # A quantity or a comparison without its noun.
    r"|How (?:far|long|many|much|often)\b"
    r"|(?:The )?(?:[Ss]ame|[Oo]thers?|[Rr]est|[Ff]irst|[Ll]ast|[Oo]ne)(?:[.,;:]| as | for | of )"
    # The rest of a sentence that began elsewhere, or a single word.
    r"|[a-z]|\w+\.(?:\s|$)"
)
ALONE = re.compile(r"\balone\b")
SECTION = re.compile(r"^(?:Args|Attributes|Returns|Raises):\n((?:    .*\n?|\n)*)", re.MULTILINE)
ENTRY = re.compile(r"^    [\w`]+(?:, [\w`]+)*: +(.*)", re.MULTILINE)


def docstrings(tree):
    """The line and the text of each docstring, those below attributes included."""
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield node.lineno, inspect.cleandoc(value.value)


def comments(source):
    """The line and the text of each comment, whose lines are joined."""
    first, last, text = 0, -1, ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        row, words = token.start[0], token.string.lstrip("# ")
        if row == last + 1 and not token.line[: token.start[1]].strip():
            text += f" {words}"
        else:
            yield first, text
            first, text = row, words
        last = row
    yield first, text


def unreadable(name, source):
    """The docstrings and comments that are fragments, or say "alone" for "only"."""
    for line, text in docstrings(ast.parse(source)):
        if NEVER_FIRST.match(text) or FRAGMENT.match(text) or ALONE.search(text):
            yield f"{name}:{line}: {text.splitlines()[0]}"
        for entry in ENTRY.findall("".join(SECTION.findall(text))):
            if NEVER_FIRST.match(entry):
                yield f"{name}:{line}: {entry}"
    for line, text in comments(source):
        if NEVER_FIRST.match(text) or ALONE.search(text):
            yield f"{name}:{line}: # {text}"


def functions(tree, public=True):
    """All functions, each with whether users can call it by a public name."""
    for node in ast.iter_child_nodes(tree):
        shown = public
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            shown = public and (node.name == "__init__" or not node.name.startswith("_"))
        if isinstance(node, ast.FunctionDef):
            yield shown, node
            # A function inside it has no public name.
            shown = False
        yield from functions(node, shown)


def is_kernel(function):
    called = [getattr(decorator, "func", decorator) for decorator in function.decorator_list]
    return any(getattr(name, "attr", getattr(name, "id", None)) in KERNELS for name in called)


def operators(tree):
    """The names of functions that torch calls as operators, whose schema has no records."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch.library."):
            yield from (argument.id for argument in node.args if isinstance(argument, ast.Name))


def parameters(function):
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in named if argument.arg not in ("self", "cls")]


def code_lines(function):
    """The number of a function's lines, without those of its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        first = function.body[0]
        lines -= first.end_lineno - first.lineno + 1
    return lines


def too_large(name, source):
    """The files and functions that are larger than a reader can keep in mind."""
    has_kernels = "/kernels/" in name or re.fullmatch(r"_features/.*kernels\.py", name)
    lines, most = source.count("\n"), 250 if has_kernels else 500
    if lines > most:
        yield f"{name}: {lines} lines, more than {most}"
    tree = ast.parse(source)
    public_module = not re.search(r"(^|/)_(?!_)", name)
    flat = set(operators(tree))
    for public, function in functions(tree, public_module):
        if is_kernel(function):
            continue
        where = f"{name}:{function.lineno}: {function.name}"
        if (count := code_lines(function)) > 60:
            yield f"{where} has {count} lines, more than 60"
        count = len(parameters(function))
        if count > 8 and not public and function.name not in flat:
            yield f"{where} has {count} parameters, more than 8"


@pytest.mark.parametrize("rule", [unreadable, too_large])
def test_the_code_is_readable(rule):
    found = [
        problem for name, path in SOURCES.items() for problem in rule(name, path.read_text("utf-8"))
    ]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize(
    "text",
    [
        *("Of a program.", "What it does.", "That of `x`.", "From one to another.", "With x."),
        *("As for `ssim`.", "How many there are.", "The same for several levels.", "The same."),
        *("For each thread.", "At most ten.", "Tiles.", "where they are.", "In the image's units."),
    ],
)
def test_fragments_are_found(text):
    sources = [
        f'"""{text}"""\n',
        f'def f():\n    """{text}"""\n',
        f'class A:\n    """{text}"""\n',
        f'X = 1\n"""{text}"""\n',
    ]
    assert all(len(list(unreadable("f.py", source))) == 1 for source in sources)
    if NEVER_FIRST.match(text):
        assert list(unreadable("f.py", f"# {text}\n# And more.\n")) == [
            f"f.py:1: # {text} And more."
        ]
        assert not list(unreadable("f.py", f"# A comment.\n# {text}\n"))
        entry = text[0].lower() + text[1:]
        sections = f'"""A function.\n\nArgs:\n    x: {entry}\n    y: a number.\n"""\n'
        assert list(unreadable("f.py", sections)) == [f"f.py:1: {entry}"]


@pytest.mark.parametrize(
    "text",
    [
        *("The images.", "Whether it runs.", "Offsets of rows.", "Withdraws a plan.", "One image."),
        *("``x`` as a float.", "Calls ``run``.", "The same plan as before.", "Forward passes."),
    ],
)
def test_sentences_are_no_fragments(text):
    assert not list(unreadable("f.py", f'"""{text}"""\n# {text}\n'))


def test_only_is_the_word():
    source = '"""Counts the inside\nalone."""\n# It is for that alone.\nx = "alone"\n'
    assert len(list(unreadable("f.py", source))) == 2


PARAMETERS = ", ".join(f"p{i}" for i in range(9))
LINES = "    x = 1\n" * 60


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (f"def f({PARAMETERS}):\n    pass\n", "_f.py:1: f has 9 parameters, more than 8"),
        (f"def f(*, {PARAMETERS}):\n    pass\n", "_f.py:1: f has 9 parameters, more than 8"),
        (f"def f():\n{LINES}", "_f.py:1: f has 61 lines, more than 60"),
        (f'def f():\n    """Text.\n\n    More.\n    """\n{LINES}', "_f.py:1: f has 61 lines, more"),
    ],
)
def test_large_functions_are_found(source, problem):
    (found,) = too_large("_f.py", source)
    assert found.startswith(problem)
    # Users prefer options to records of them.
    assert list(too_large("f.py", source)) == ([] if "parameters" in problem else [found[1:]])
    private = source.replace("def f", "def _f")
    assert list(too_large("f.py", private)) == [found[1:].replace(": f", ": _f")]
    for decorator in ("@triton.jit", "@triton.jit(a=1)", "@entry", "@kernel", "@inlined"):
        assert not list(too_large("_f.py", f"{decorator}\n{source}"))
    assert list(too_large("_f.py", f"@functools.cache\n{source}"))
    if "parameters" in problem:
        operator = f"{source}\n\ntorch.library.impl('a::b', 'CPU', f)\n"
        assert not list(too_large("_f.py", operator))


def test_large_methods_are_found():
    method = f"    def __init__(self, {PARAMETERS}):\n        pass\n"
    assert not list(too_large("f.py", f"class A:\n{method}"))
    for name, owner in (("_f.py", "A"), ("f.py", "_A")):
        assert len(list(too_large(name, f"class {owner}:\n{method}"))) == 1
    inner = f"def f():\n    def g({PARAMETERS}):\n        pass\n"
    assert len(list(too_large("f.py", inner))) == 1


def test_large_files_are_found():
    for name, most in (
        ("f.py", 500),
        ("_ssim/gpu/kernels/f.py", 250),
        ("_features/lpips_kernels.py", 250),
    ):
        assert not list(too_large(name, "x = 1\n" * most))
        problem = f"{name}: {most + 1} lines, more than {most}"
        assert list(too_large(name, "x = 1\n" * (most + 1))) == [problem]
