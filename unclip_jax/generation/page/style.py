"""How the page looks, and the little that the browser does itself."""

CSS = """
.gradio-container { max-width: 1240px !important; width: 100%; margin: auto; }
.status { min-height: 2.6em; padding: 0.35em 0; line-height: 1.35; }
.status progress { width: 100%; height: 6px; accent-color: var(--color-accent); }
.status.error span { color: #dc2626; font-weight: 500; }
.small img { image-rendering: pixelated; }
.shown .grid-wrap, .strip .grid-wrap {
  max-height: none !important; min-height: 0 !important; height: auto !important;
}
.shown .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(min(256px, 100%), 1fr)) !important;
  height: auto !important; grid-auto-rows: auto !important;
}
.shown .thumbnail-lg { display: flex; flex-direction: column; height: auto !important;
  aspect-ratio: auto !important; }
.shown .grid-container img { width: 100%; height: auto; object-fit: contain; }
.shown .caption-label {  /* below the image, not over it */
  position: static; width: 100%; max-width: none; padding: 6px 8px; border: 0;
  font-size: 12px; white-space: normal; opacity: 1 !important;
}
.strip { min-height: 0 !important; height: auto !important; }
.strip .grid-container {
  grid-template-columns: repeat(auto-fit, minmax(52px, 1fr)) !important;
  gap: 3px; height: auto !important; padding-top: 30px;
}
.strip .thumbnail-item { height: auto !important; aspect-ratio: 1; }
.strip .caption-label { display: none; }
.picture .image-frame, .picture .image-container, .picture button { height: 100%; }
.picture img { width: 100% !important; height: 100% !important;
  object-fit: contain !important; }
.hint, .hint > * { padding: 0 !important; }
.hint { margin-bottom: -4px; color: var(--body-text-color-subdued); font-size: 13px; }
.examples { gap: 6px !important; }
.examples button { min-width: 0 !important; flex: 0 1 auto !important; font-weight: 400;
  white-space: normal; }
.send { gap: 6px !important; }
.send button { min-width: 0 !important; flex: 0 1 auto !important; }
footer { display: none !important; }
@media (max-width: 640px) {
  .gradio-container { padding: 8px !important; }
  .gradio-container h1 { font-size: 1.35em; }
}
"""

# Puts the settings into the address, so that it can be sent to others.
PERMALINK = """
(...values) => {
  const names = %s;
  const query = new URLSearchParams();
  names.forEach((name, i) => {
    if (values[i] !== null && values[i] !== "") query.set(name, values[i]);
  });
  history.replaceState(null, "", "?" + query);
}
"""
