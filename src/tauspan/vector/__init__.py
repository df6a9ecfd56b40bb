"""`TaskVector`: a displacement in weight space that knows the point it starts from."""

from tauspan.vector.files import FILE, FORMAT, header, parse_header, vector_file
from tauspan.vector.several import confined, cosine_matrix, fitted, meeting
from tauspan.vector.task_vector import TaskVector

__all__ = [
    "FILE",
    "FORMAT",
    "TaskVector",
    "confined",
    "cosine_matrix",
    "fitted",
    "header",
    "meeting",
    "parse_header",
    "vector_file",
]
