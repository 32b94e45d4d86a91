"""Units in the headers of tables, as the field writes them.

>>> split("T (°C)"), split("Temp_C"), split("RSRP [dBm]"), split("CO(GT)")
(('T', '°C'), ('Temp', '°C'), ('RSRP', 'dBm'), ('CO(GT)', ''))
"""

from __future__ import annotations

import re

BRACKETS = re.compile(r"(?P<name>.*?)[ _]*(?:\((?P<round>[^()]*)\)|\[(?P<square>[^\[\]]*)\])\s*")
# What stands for a unit, in lower case: the unit.
KNOWN = {
    "c": "°C", "°c": "°C", "degc": "°C", "deg c": "°C", "celsius": "°C", "f": "°F", "°f": "°F", "degf": "°F",
    "fahrenheit": "°F", "k": "K", "kelvin": "K", "%": "%", "percent": "%", "pct": "%", "%rh": "%", "ppm": "ppm",
    "ppb": "ppb", "lux": "lux", "lx": "lux", "pa": "Pa", "hpa": "hPa", "kpa": "kPa", "mbar": "mbar", "bar": "bar",
    "v": "V", "mv": "mV", "uv": "µV", "µv": "µV", "a": "A", "ma": "mA", "w": "W", "kw": "kW", "wh": "Wh", "kwh": "kWh",
    "g": "g", "mg": "mg", "m/s2": "m/s²", "m/s²": "m/s²", "m/s^2": "m/s²", "m/s": "m/s", "mps": "m/s", "km/h": "km/h",
    "kmh": "km/h", "kph": "km/h", "mph": "mph", "rad": "rad", "rad/s": "rad/s", "deg": "deg", "°": "deg",
    "degrees": "deg", "deg/s": "deg/s", "°/s": "deg/s", "dps": "deg/s", "ut": "µT", "µt": "µT", "hz": "Hz",
    "khz": "kHz", "mhz": "MHz", "db": "dB", "dba": "dBA", "dbm": "dBm", "s": "s", "sec": "s", "seconds": "s",
    "ms": "ms", "millis": "ms", "milliseconds": "ms", "us": "µs", "µs": "µs", "ns": "ns", "min": "min", "h": "h",
    "m": "m", "cm": "cm", "mm": "mm", "km": "km", "ug/m3": "µg/m³", "µg/m3": "µg/m³", "µg/m³": "µg/m³",
    "mg/m3": "mg/m³", "mg/m³": "mg/m³", "microg/m^3": "µg/m³", "bpm": "bpm", "mmhg": "mmHg", "n": "N", "nm": "Nm",
    "kg": "kg", "l": "l", "ml": "ml", "bytes": "bytes", "kbps": "kbps", "mbps": "Mbps", "counts": "counts",
}  # fmt: skip
# After a _ or a space only what is rarely anything else, written so.
TAILS = frozenset(
    "degC celsius degF fahrenheit pct percent ppm ppb lux hPa kPa mbar mV uV mA kWh dB dBm Hz kHz ms us ns sec seconds "
    "millis milliseconds degrees dps kmh mps bpm mmHg kbps Mbps".split()
)
WARM = re.compile("temp|dew|heat|^t$", re.IGNORECASE)


def split(header: str) -> tuple[str, str]:
    """The name and the unit ("" where none is told) of a column."""
    found = BRACKETS.fullmatch(header)
    if found and found["name"]:
        inside = (found["square"] if found["round"] is None else found["round"]).strip()
        unit = KNOWN.get(inside.lower(), inside if found["round"] is None else "")
        if unit:
            return found["name"], unit
    name, _, tail = header.replace(" ", "_").rpartition("_")
    if name and (
        tail in TAILS or (tail in ("C", "F") and WARM.search(name)) or (tail in ("s", "m") and name == "time")
    ):
        return header[: len(name)], KNOWN[tail.lower()]
    return header, ""
