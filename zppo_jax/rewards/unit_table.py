"""The units and magnitudes that the grader knows, by their names in the singular."""

from __future__ import annotations

UNITS: dict[str, dict[str, str]] = {
    "length": {
        "Å angstrom": "1e-10", "nm nanometer nanometre": "1e-9", "µm micrometer micrometre micron 微米": "1e-6",
        "mm millimeter millimetre 毫米": "0.001", "cm centimeter centimetre 厘米": "0.01",
        "dm decimeter decimetre 分米": "0.1", "hm": "100", "m meter metre 米": "1",
        "km kilometer kilometre 千米 公里": "1000",
        "in inch inches": "0.0254", "ft foot feet": "0.3048", "yd yard": "0.9144", "mi mile": "1609.344",
    },
    "mass": {
        "µg microgram": "1e-9", "mg milligram": "1e-6", "g gram 克": "0.001", "kg kilogram 千克 公斤": "1",
        "t tonne 吨": "1000", "lb lbs pound": "0.45359237", "oz ounce": "0.028349523125",
    },
    "time": {
        "ns nanosecond": "1e-9", "µs microsecond": "1e-6", "ms millisecond": "0.001", "s sec second 秒": "1",
        "min minute 分钟": "60", "h hr hour 小时": "3600", "day 天": "86400", "week": "604800",
    },
    "calendar": {"month 个月": "1", "year yr 年": "12", "decade": "120", "century centuries": "1200"},
    "celsius": {"celsius": "1"}, "fahrenheit": {"fahrenheit": "1"}, "kelvin": {"K kelvin": "1"},
    "angle": {"rad radian": "1"}, "mole": {"mol mole": "1"}, "decibel": {"dB decibel": "1"},
    "dollar": {"$ dollar usd": "1", "¢ cent": "0.01"}, "euro": {"€ eur euro": "1"}, "sterling": {"£ gbp": "1"},
    "rupee": {"₹ rupee inr rs": "1"}, "yuan": {"元 yuan rmb cny": "1", "角": "0.1"},
    "ohm": {"Ω ohm": "1", "kΩ kilohm": "1000", "MΩ": "1e6"}, "henry": {"mH": "0.001"},
    "farad": {"F farad": "1", "mF": "0.001", "µF": "1e-6", "nF": "1e-9", "pF": "1e-12"},
    "volt": {"V volt": "1", "kV": "1000", "mV": "0.001"}, "ampere": {"A ampere amp": "1", "mA": "0.001"},
    "coulomb": {"C coulomb": "1", "mC": "0.001", "µC": "1e-6", "nC": "1e-9"},
    "tesla": {"T tesla": "1", "mT": "0.001"}, "weber": {"Wb weber": "1"}, "lux": {"lx lux": "1"},
    "watt": {"W watt": "1", "kW kilowatt": "1000", "MW": "1e6", "mW": "0.001"},
    "joule": {
        "J joule": "1", "kJ": "1000", "MJ": "1e6", "eV": "1.602176634e-19", "keV": "1.602176634e-16",
        "MeV": "1.602176634e-13", "GeV": "1.602176634e-10", "cal calorie": "4.184", "kcal": "4184", "kWh": "3.6e6",
    },
    "newton": {"N newton": "1", "kN": "1000"},
    "pascal": {"Pa pascal": "1", "kPa": "1000", "MPa": "1e6", "GPa": "1e9", "atm": "101325", "bar": "1e5"},
    "hertz": {"Hz hertz": "1", "kHz": "1000", "MHz": "1e6", "GHz": "1e9"},
    "byte": {"byte": "1", "kB KB kilobyte": "1000", "MB megabyte": "1e6", "GB gigabyte": "1e9", "TB terabyte": "1e12"},
}  # fmt: skip
"""By dimension: the names of a unit, and its factor to the dimension's own unit."""

_PRODUCTS = {
    "l L liter litre 升": (("dm", 3),), "ml mL milliliter millilitre 毫升 cc": (("cm", 3),),
    "ha hectare 公顷": (("hm", 2),), "kph kmh kmph": (("km", 1), ("h", -1)), "mph": (("mi", 1), ("h", -1)),
    "平方米": (("m", 2),), "平方厘米": (("cm", 2),), "平方分米": (("dm", 2),), "平方千米 平方公里": (("km", 2),),
    "立方米": (("m", 3),), "立方厘米": (("cm", 3),), "立方分米": (("dm", 3),),
}  # fmt: skip
PRODUCTS: dict[str, tuple[tuple[str, int], ...]] = {
    name: parts for names, parts in _PRODUCTS.items() for name in names.split()
}
"""Units that are products of others: (unit, power) by name."""

MAGNITUDES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "lakh": 10**5, "crore": 10**7, "百": 100, "千": 1000,
    "万": 10**4, "百万": 10**6, "千万": 10**7, "亿": 10**8, "十亿": 10**9, "万亿": 10**12,
}  # fmt: skip
"""Words behind a number that multiply it."""
