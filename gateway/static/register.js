// An invitation comes behind the # of the address, which no server sees; it goes into its field, and out of the address.
const token = new URLSearchParams(location.hash.slice(1)).get("invitation");
if (token) {
  document.getElementById("invited").open = true;
  document.getElementById("field-invitation").value = token;
  history.replaceState(history.state, "", location.pathname + location.search);
}
