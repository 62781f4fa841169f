"""Patches to whole objects, their scores, and the files and pictures that show them.

A score says in its docstring what it measures, its equation and its source; noise compared with noise gets none.
"""
