"""What a user asks for in how a network looks at images, checked without TensorFlow.

window = options.parse_window('512x1024', depth=5, padding='same')     # (512, 1024)
scales = options.parse_scales(['0.5', '1'])                            # (0.5, 1.0)
"""

from configs.validation import input_size_problem
from launch import entry


def parse_window(text: str, depth: int, padding: str) -> tuple[int, int]:
    """'512x1024' -> (512, 1024). Raises UserError BAD_USAGE if the network takes no such size."""
    window = entry.parse_size('window', text)
    if problem := input_size_problem(window, depth, padding):
        raise entry.UserError(entry.BAD_USAGE, f'--window={text}: {problem}')
    return window


def parse_scales(texts: list[str]) -> tuple[float, ...]:
    """['0.5', '1'] -> (0.5, 1.0). Raises UserError BAD_USAGE if these are not sizes."""
    try:
        scales = tuple(float(text) for text in texts)
        usable = scales and all(0.1 <= scale <= 10 for scale in scales)
    except ValueError:
        usable = False
    if not usable:
        raise entry.UserError(
            entry.BAD_USAGE, f'--scales={",".join(texts)}: must be numbers from 0.1 to 10, separated by commas'
        )
    return scales
