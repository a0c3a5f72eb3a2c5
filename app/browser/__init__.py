"""The trace browser: Streamlit pages that draw what `curate` and `train` compute."""
