"""Evaluation of the synthesizer: are its conditions obeyed, and how good is it after how many steps?"""
