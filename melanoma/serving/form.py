"""The file of an HTML form, as browsers and `curl -F` send it: multipart/form-data, RFC 7578."""

import re

from melanoma.errors import InputError

OVERHEAD = 2**16  # bytes that a form may have beside its file

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]+)"|([^\s;"]+))', re.IGNORECASE)
_FILENAME = re.compile(rb"^content-disposition:[^\r\n]*;\s*filename\*?\s*=", re.IGNORECASE | re.MULTILINE)
_MOST_FIELDS = 100
_HOW = "send one image a request, as `curl -F file=@lesion.jpg` or `curl --data-binary @lesion.jpg` does"


def is_form(content_type: str) -> bool:
    """Whether a body of this Content-Type is such a form."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def file_of(content_type: str, body: bytes) -> bytes:
    """The content of the one file of a form; nobody reads its other fields.

    Raises InputError where the form is damaged, or holds no file or more than one.
    """
    found = _BOUNDARY.search(content_type)
    if not found:
        raise InputError(f"The form does not say what separates its fields: {_HOW}.")
    between = b"\r\n--" + (found[1] or found[2]).encode("latin-1", "replace")
    # The first boundary may begin the body; what stands before it, and behind the last, is no field.
    _, *parts = (b"\r\n" + body).split(between, _MOST_FIELDS)
    if not parts or not parts[-1].startswith(b"--"):
        raise InputError(f"The form is cut short, or has {_MOST_FIELDS} fields and more: {_HOW}.")
    files = []
    for part in parts[:-1]:
        # Blanks may follow the boundary.
        head, _, content = part.partition(b"\r\n")[2].partition(b"\r\n\r\n")
        if _FILENAME.search(head):
            files.append(content)
    if len(files) != 1:
        raise InputError(f"The form holds {len(files) or 'no'} files: {_HOW}.")
    return files[0]
