"""IsoBudget: at the same cost, which student is better — pretrained from scratch or distilled?"""

__version__ = "0.1.0"
