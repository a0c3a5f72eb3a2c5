"""The trace browser: Streamlit pages that draw the results of `curate` and `train`."""
