"""What MONAI lacks for the segmenter.

Inference needs ``batch``, ``cases``, ``dicom``, ``loading``, ``volumes``, ``lungs`` and ``trained``: which CTs to
label and what is refused, where their lungs are, and what the weights were trained with. Networks that other programs
compute need ``onnx_network`` or ``triton_network``. All else serves training and evaluation.
"""
